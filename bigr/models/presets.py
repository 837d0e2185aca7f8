"""The published sizes (docs/method.md, sections 1 and 2): L, XL and XXL at 256², L at 512², and their tokenizers.

Shapes only; recipes/ holds the settings that train and sample them. Another K is `dataclasses.replace(…, code_bits=K)`.
"""

from bigr.models.autoencoder.tokenizer import TokenizerConfig
from bigr.models.masked.generator import BiGRConfig

PRESETS: dict[str, BiGRConfig] = {
    name: BiGRConfig(
        code_bits=code_bits,
        grid=grid,
        num_classes=1000,
        dim=dim,
        layers=layers,
        heads=heads,
        transcoder_dim=transcoder_dim,
        transcoder_blocks=transcoder_blocks,
    )
    for name, code_bits, grid, layers, heads, dim, transcoder_blocks, transcoder_dim in (
        ("L", 24, 16, 24, 16, 1024, 3, 1024),
        ("XL", 24, 16, 36, 20, 1280, 6, 1280),
        ("XXL", 24, 16, 48, 24, 1536, 8, 1536),
        ("L-512", 32, 32, 24, 16, 1024, 6, 1280),
    )
}
"""Generators by the paper's names, for ImageNet-1K: K = 24 and N = 256; "L-512" has K = 32 and N = 1024."""

TOKENIZERS: dict[str, TokenizerConfig] = {
    name: TokenizerConfig(
        image_size=image_size,
        code_bits=code_bits,
        embed_dim=256,
        base_channels=128,
        channel_multipliers=(1, 1, 2, 2, 4),
        res_blocks=2,
        attention_resolutions=attention_resolutions,
    )
    for name, image_size, code_bits, attention_resolutions in (
        ("256", 256, 24, (16,)),
        ("512", 512, 32, ()),  # published with attention at 16, which 512 → 32 never reaches
    )
}
"""Tokenizers by the side of their images in pixels, f = 16: K = 24 at 256, K = 32 at 512."""
