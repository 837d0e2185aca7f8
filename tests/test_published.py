"""Published checkpoints become models of this project and go back, bit for bit; what does not fit is one clear line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bigr import interop
from bigr.cli import program
from bigr.interop.belonging import check_published
from bigr.interop.folders import load_model, model_hash, save, tokenizer_of, without_weights
from bigr.interop.published import exchange
from bigr.interop.published.published_generator import generator_config, read_generator
from bigr.interop.published.published_model import PublishedModel
from bigr.interop.published.published_tokenizer import read_tokenizer, tokenizer_config
from bigr.interop.published.tensor_files import FileTensor
from bigr.interop.published.weight_names import TRANSCODER, TRANSCODER_AGAIN, published_generator, published_tokenizer
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.models.presets import PRESETS, TOKENIZERS
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_tensors
from tests import publications


@pytest.fixture
def files(tmp_path):
    """A published tokenizer and a generator that goes with it."""
    return (
        publications.save_tokenizer(tmp_path / "t.th", publications.tokenizer_tensors(publications.tokenizer_config())),
        publications.save_generator(tmp_path / "g.pt", publications.generator_tensors(publications.generator_config())),
    )


def bigr(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["bigr", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        program.main()
    return int(ended.value.code or 0)


def refused(call, *arguments, **options) -> str:
    with pytest.raises(BigrError) as raised:
        call(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# What is computed


@torch.no_grad()
def test_an_imported_tokenizer_computes_what_the_published_one_does(tmp_path):
    header, state, vectors = publications.golden("tokenizer_a")
    file = publications.save_tokenizer(tmp_path / "t.th", state)
    found = exchange.import_tokenizer(file, tmp_path / "model", image_size=16)
    assert found.config.attention_resolutions == tuple(header["attention_resolutions"])
    model = load_model(tmp_path / "model", Tokenizer)
    probabilities = model.encode(vectors["in.images"]).mT.unflatten(2, (8, 8))
    assert torch.allclose(probabilities, vectors["out.bit_probs"], atol=1e-4)
    assert torch.allclose(model.decode(vectors["out.bits"].flatten(2).mT), vectors["out.images"], atol=1e-4)


@torch.no_grad()
def test_an_imported_generator_computes_what_the_published_one_does(tmp_path):
    header, state, vectors = publications.golden("generator_a")
    file = publications.save_generator(tmp_path / "g.pt", state, args=Path("foreign"))
    exchange.import_generator(file, tmp_path / "model", heads=header["heads"])
    model = load_model(tmp_path / "model", BiGR)
    hidden = model.hidden(vectors["in.codes"], vectors["in.labels"], vectors["in.mask"].bool())
    assert torch.allclose(hidden, vectors["out.hidden"], atol=1e-4)
    flips = model.transcoder(vectors["diff.xt"], vectors["diff.t"], vectors["diff.cond"])
    assert torch.allclose(flips, vectors["diff.flip_logits"], atol=1e-4)


# Shapes


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
@pytest.mark.parametrize("size", TOKENIZERS)
def test_the_published_tokenizers_shapes_are_inferred(size, bits):
    shape = replace(TOKENIZERS[size], code_bits=bits)
    tensors = published_tokenizer(without_weights(Tokenizer, shape).state_dict())
    assert tokenizer_config(tensors, "file") == shape


@pytest.mark.parametrize("name", PRESETS)
def test_the_published_generators_shapes_are_inferred(name):
    tensors = published_generator(without_weights(BiGR, PRESETS[name]).state_dict())
    assert generator_config(tensors, "file") == PRESETS[name]


@pytest.mark.parametrize(
    "shape",
    [
        publications.tokenizer_config(),
        publications.tokenizer_config(image_size=32, attention_resolutions=(16,)),
        publications.tokenizer_config(res_blocks=3, channel_multipliers=(1, 3), image_size=16, norm_first=False),
        publications.tokenizer_config(image_size=16, channel_multipliers=(2,), base_channels=64),
    ],
)
def test_a_tokenizers_shape_is_inferred_from_its_attention_at_16_pixels(shape):
    assert tokenizer_config(published_tokenizer(Tokenizer(shape).state_dict()), "file") == shape


@pytest.mark.parametrize("attention", [(), (8,), (4, 8, 16)])
def test_what_tensors_do_not_tell_of_a_tokenizer_comes_from_the_generator_or_from_the_user(attention):
    shape = publications.tokenizer_config(image_size=16, attention_resolutions=tuple(sorted(attention, reverse=True)))
    tensors = published_tokenizer(Tokenizer(shape).state_dict())
    assert tokenizer_config(tensors, "file", image_size=16) == shape
    assert tokenizer_config(tensors, "file", grid=4) == shape
    if attention != (8,):
        assert "give --image-size" in refused(tokenizer_config, tensors, "file")
    assert "a multiple of 4" in refused(tokenizer_config, tensors, "file", image_size=18)


@pytest.mark.parametrize(
    "shape",
    [
        publications.generator_config(),
        publications.generator_config(layers=1, grid=2, dim=128, heads=2, num_classes=0, transcoder_blocks=1),
        publications.generator_config(dim=320, heads=5, ffn_multiple_of=128, code_bits=9, diffusion_steps=256),
    ],
)
def test_a_generators_shape_is_inferred(shape):
    assert generator_config(publications.generator_tensors(shape), "file") == shape


def test_heads_that_are_not_64_wide_are_asked_for():
    shape = publications.generator_config(dim=48, heads=3)
    tensors = publications.generator_tensors(shape)
    assert "give --heads" in refused(generator_config, tensors, "file")
    found = generator_config(tensors, "file", heads=3)
    assert (found.heads, found.ffn_dim) == (3, shape.ffn_dim)
    assert "--heads is 5" in refused(generator_config, tensors, "file", heads=5)


# Both ways


def test_a_model_exported_and_imported_again_is_the_same_to_the_bit(tmp_path):
    torch.manual_seed(0)
    save(
        tmp_path / "a/tokenizer", Tokenizer(publications.tokenizer_config(image_size=20, attention_resolutions=(10, 7)))
    )
    digest = model_hash(tmp_path / "a/tokenizer")
    shape = publications.generator_config(grid=5, dim=48, heads=2, ffn_multiple_of=8, dropout=0.0, diffusion_steps=7)
    save(tmp_path / "a/bigr", BiGR(shape), digest)
    exchange.export_tokenizer(tmp_path / "a/tokenizer", tmp_path / "out/t.safetensors")
    exchange.export_generator(tmp_path / "a/bigr", tmp_path / "out/g.safetensors")
    exchange.import_pair(tmp_path / "out/t.safetensors", tmp_path / "out/g.safetensors", tmp_path / "b")
    for name in ("tokenizer", "bigr"):
        assert model_hash(tmp_path / "b" / name) == model_hash(tmp_path / "a" / name)
    exchange.import_generator(tmp_path / "out/g.safetensors", tmp_path / "c")
    assert tokenizer_of(tmp_path / "c") == digest


def test_a_file_imported_and_exported_again_holds_every_used_tensor_to_the_bit(tmp_path):
    _, tokenizer, _ = publications.golden("tokenizer_a")
    _, generator, _ = publications.golden("generator_a")
    pair = (
        publications.save_tokenizer(tmp_path / "t.th", tokenizer),
        publications.save_generator(tmp_path / "g.pt", generator),
    )
    exchange.import_tokenizer(pair[0], tmp_path / "tokenizer", image_size=32)
    exchange.import_generator(pair[1], tmp_path / "bigr", heads=3)
    exchange.export_tokenizer(tmp_path / "tokenizer", tmp_path / "t.safetensors")
    exchange.export_generator(tmp_path / "bigr", tmp_path / "g.safetensors")
    used = {name: t for name, t in tokenizer.items() if name.startswith("ae.") and "logsigma" not in name}
    for file, tensors in (("t", used), ("g", generator)):
        again = load_file(tmp_path / f"{file}.safetensors")
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[name].view(torch.int32), t.view(torch.int32)) for name, t in tensors.items())


def test_a_model_that_the_published_code_would_compute_otherwise_is_not_exported(tmp_path):
    save(tmp_path / "t", Tokenizer(publications.tokenizer_config(quantizer="lfq")))
    assert "quantizer" in refused(exchange.export_tokenizer, tmp_path / "t", tmp_path / "t.safetensors")
    for name, value in (("target", "mask"), ("target", "x0"), ("condition_rope", True)):
        save(tmp_path / name, BiGR(publications.generator_config(**{name: value})))
        assert name in refused(exchange.export_generator, tmp_path / name, tmp_path / "g.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def test_half_precision_becomes_float32(tmp_path):
    tensors = publications.generator_tensors(publications.generator_config())
    halves = {name: t.bfloat16() if name.startswith("layers") else t for name, t in tensors.items()}
    exchange.import_generator(publications.save_generator(tmp_path / "g.pt", halves), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    name = "layers.1.attention.wo.weight"
    assert torch.equal(weights[f"backbone.{name}"], tensors[name].bfloat16().float())


def test_the_weights_of_an_imported_model_can_be_trained(tmp_path, files):
    exchange.import_tokenizer(files[0], tmp_path / "model")
    digest = model_hash(tmp_path / "model")
    trained, fresh = load_model(tmp_path / "model", Tokenizer), Tokenizer(publications.tokenizer_config())
    assert [(n, p.requires_grad) for n, p in trained.named_parameters()] == [
        (n, p.requires_grad) for n, p in fresh.named_parameters()
    ]
    trained.decode(torch.ones(1, 256, 6)).sum().backward()
    torch.optim.SGD(trained.parameters(), lr=1.0).step()
    assert model_hash(tmp_path / "model") == digest


def test_a_model_without_weights_has_real_tables():
    shape = publications.generator_config()
    empty, whole = without_weights(BiGR, shape), BiGR(shape)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert all(torch.equal(table, dict(whole.named_buffers())[name]) for name, table in empty.named_buffers())
    assert not nn.Linear(2, 2).weight.is_meta  # only while it is built


# What does not fit


def test_a_file_with_one_transcoder_is_enough_and_two_must_agree(tmp_path):
    tensors = publications.generator_tensors(publications.generator_config())
    digests = set()
    for prefix in (TRANSCODER, TRANSCODER_AGAIN, "nothing"):
        some = {name: t for name, t in tensors.items() if not name.startswith(prefix)}
        path = publications.save_generator(tmp_path / "g.pt", some)
        exchange.import_generator(path, tmp_path / "model", force=True)
        digests.add(model_hash(tmp_path / "model"))
    assert len(digests) == 1
    name = TRANSCODER_AGAIN + "x_embedder.bias"
    path = publications.save_generator(tmp_path / "g.pt", tensors | {name: tensors[name] + 1})
    assert f"{TRANSCODER}x_embedder.bias and {name} differ" in refused(read_generator, path)


def test_swapped_files_are_told(tmp_path, files):
    message = refused(exchange.import_pair, files[1], files[0], tmp_path / "out")
    assert "were the files swapped?" in message
    assert "g.pt: a generator" in refused(read_tokenizer, files[1])
    assert "t.th: a tokenizer" in refused(read_generator, files[0])
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_and_a_generator_that_do_not_belong_together_are_refused(tmp_path, files):
    bits = publications.generator_tensors(publications.generator_config(code_bits=8))
    message = refused(exchange.import_pair, files[0], publications.save_generator(tmp_path / "b.pt", bits), tmp_path)
    assert "ae.quantize.embed.weight has K = 6 bits a token, tok_embeddings.weight K = 8" in message
    message = refused(exchange.import_pair, *files, tmp_path, image_size=32)
    assert "32² images in 8×8 tokens, diffusion_pos_embed_learned for 16×16" in message
    assert not (tmp_path / "tokenizer").exists() and not (tmp_path / "bigr").exists()


def test_the_generator_tells_the_size_of_a_tokenizers_images_where_its_tensors_do_not(tmp_path, files):
    shape = publications.tokenizer_config(attention_resolutions=())
    tokenizer = publications.save_tokenizer(tmp_path / "plain.th", publications.tokenizer_tensors(shape))
    assert "give --image-size" in refused(exchange.import_tokenizer, tokenizer, tmp_path / "alone")
    found, generator = exchange.import_pair(tokenizer, files[1], tmp_path / "pair")
    assert (found.config, generator.config.grid) == (shape, 16)


def test_the_published_tokenizer_for_512_is_not_taken_for_a_generator_for_256(tmp_path):
    def found(cls, shape):
        return PublishedModel(tmp_path / cls.kind, shape, {})

    l512, l256 = found(BiGR, PRESETS["L-512"]), found(BiGR, replace(PRESETS["L"], code_bits=32))
    tensors = published_tokenizer(without_weights(Tokenizer, TOKENIZERS["512"]).state_dict())
    tokenizer = found(Tokenizer, tokenizer_config(tensors, "file", grid=16))
    assert "512² images in 32×32 tokens, diffusion_pos_embed_learned for 16×16" in refused(
        check_published, tokenizer, l256
    )
    check_published(tokenizer, l512)
    assert (exchange.title(l512)[:11], exchange.title(l256)[:11]) == ("L-d32, 512²", "L-d32, 256²")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("layers.1.attention.wo.weight", None, "layers.1.attention.wo.weight is missing"),
        (
            "layers.1.attention.wo.weight",
            torch.zeros(64, 63),
            "wo.weight has shape [64, 63]; this model needs [64, 64]",
        ),
        (
            "layers.0.attention.wo.weight",
            torch.zeros(64, 64, dtype=torch.int64),
            "floating-point numbers, got torch.int64",
        ),
        ("layers.0.attention.bias", torch.zeros(64), "layers.0.attention.bias has no place"),
        ("layers.7.attention_norm.weight", torch.zeros(64), "has no place"),
        ("backbone.mask_tok", torch.zeros(1, 64), "backbone.mask_tok has no place"),
        ("cls_embedding.weight", torch.zeros(4, 64), "cls_embedding.weight has no place"),
        ("diffusion_pos_embed_learned", torch.zeros(1, 255, 64), "255 tokens, which make no square"),
        ("tok_embeddings.weight", torch.zeros(64), "tok_embeddings.weight has shape [64]"),
        ("layers.0.feed_forward.w1.weight", torch.zeros(100, 64), "w1.weight is 100 wide"),
        ("diffusion_processor.scheduler.beta", torch.zeros(17), "scheduler.beta is not the published schedule"),
        ("diffusion_processor.scheduler.beta", torch.zeros(16), "a table of T + 1 steps is expected"),
    ],
)
def test_a_generator_that_does_not_fit_names_the_tensor(tmp_path, name, change, words):
    tensors = publications.generator_tensors(publications.generator_config())
    changed = {key: t for key, t in tensors.items() if key != name} | ({} if change is None else {name: change})
    path = publications.save_generator(tmp_path / "g.pt", changed)
    message = refused(exchange.import_generator, path, tmp_path / "out")
    assert message.startswith(f"{path}: ")
    assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ae.encoder.blocks.3.conv1.weight", "ae.encoder.blocks are not those of a BiGR tokenizer"),
        ("ae.encoder.blocks.0.weight", "is missing"),
        ("ae.quantize.proj.0.bias", "ae.quantize.proj.0.bias is missing"),
        ("ae.generator.blocks.2.conv_out.bias", "ae.generator.blocks.2.conv_out.bias is missing"),
    ],
)
def test_a_tokenizer_that_does_not_fit_names_the_tensor(tmp_path, name, words):
    tensors = publications.tokenizer_tensors(publications.tokenizer_config())
    del tensors[name]
    path = publications.save_tokenizer(tmp_path / "t.th", tensors)
    assert words in refused(exchange.import_tokenizer, path, tmp_path / "out")


# The command line


def test_import_writes_both_models_says_what_it_found_and_how_to_use_it(tmp_path, files, monkeypatch, capsys):
    out = tmp_path / "models/published"
    words = ("import", "--tokenizer", files[0], "--generator", files[1], "--out", out)
    assert bigr(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    assert "tokenizer d6, 64² in 16×16 tokens" in said
    assert f"generator.from: {out / 'bigr'}" in said
    assert tokenizer_of(out / "bigr") == model_hash(out / "tokenizer")
    before = model_hash(out / "bigr")

    assert bigr(monkeypatch, *words) == 2
    assert f"{out / 'tokenizer'} exists already; --force replaces it\n" == capsys.readouterr().err
    assert bigr(monkeypatch, *words, "--force") == 0
    assert model_hash(out / "bigr") == before

    exported = ("export", "--tokenizer", out / "tokenizer", "--generator", out / "bigr", "--out", tmp_path / "back")
    assert bigr(monkeypatch, *exported) == 0
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"tokenizer.safetensors", "generator.safetensors"}
    assert bigr(monkeypatch, *exported) == 2
    assert bigr(monkeypatch, *exported, "--force") == 0


def test_either_file_is_enough(tmp_path, files, monkeypatch):
    assert bigr(monkeypatch, "import", "--tokenizer", files[0], "--out", tmp_path / "a") == 0
    assert bigr(monkeypatch, "import", "--generator", files[1], "--out", tmp_path / "a") == 0
    assert tokenizer_of(tmp_path / "a/bigr") is None
    assert bigr(monkeypatch, "import", "--out", tmp_path / "b") == 2
    assert bigr(monkeypatch, "export", "--out", tmp_path / "b") == 2


def test_an_option_of_the_file_that_is_not_given_is_refused(tmp_path, files, monkeypatch, capsys):
    for file, option in ((("--tokenizer", files[0]), "--heads"), (("--generator", files[1]), "--image-size")):
        assert bigr(monkeypatch, "import", *file, option, 4, "--out", tmp_path / "a") == 2
        assert capsys.readouterr().err.startswith(f"{option} ")
    assert not (tmp_path / "a").exists()


def test_what_cannot_be_written_is_one_line(tmp_path, files, monkeypatch, capsys):
    both = ("--tokenizer", files[0], "--generator", files[1])
    (tmp_path / "a").touch()
    assert bigr(monkeypatch, "import", *both, "--out", tmp_path / "a") == 2
    assert capsys.readouterr().err == f"{tmp_path / 'a'}: cannot be written: File exists\n"
    (tmp_path / "b").mkdir()
    (tmp_path / "b/bigr").touch()
    assert bigr(monkeypatch, "import", *both, "--out", tmp_path / "b", "--force") == 2
    assert not (tmp_path / "b/tokenizer").exists()
    capsys.readouterr()

    exchange.import_pair(*files, tmp_path / "c")
    folders = ("--tokenizer", tmp_path / "c/tokenizer", "--generator", tmp_path / "c/bigr")
    assert bigr(monkeypatch, "export", *folders, "--out", tmp_path / "a") == 2
    assert capsys.readouterr().err == f"{tmp_path / 'a/tokenizer.safetensors'}: cannot be written: File exists\n"


def test_a_folder_that_is_no_model_is_never_replaced(tmp_path, files, monkeypatch, capsys):
    kept = tmp_path / "tokenizer/essay.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    assert bigr(monkeypatch, "import", "--tokenizer", files[0], "--out", tmp_path, "--force") == 2
    assert "tokenizer holds essay.txt, which is no part of a model" in capsys.readouterr().err
    assert kept.read_text() == "mine"


def test_of_two_exports_neither_is_written_where_one_cannot_be(tmp_path, files, monkeypatch):
    exchange.import_pair(*files, tmp_path / "a")
    words = ("export", "--tokenizer", tmp_path / "a/tokenizer", "--out", tmp_path / "out")
    assert bigr(monkeypatch, *words, "--generator", tmp_path / "nothing") == 2
    assert not (tmp_path / "out").exists()
    exchange.export_generator(tmp_path / "a/bigr", tmp_path / "out/generator.safetensors")
    assert bigr(monkeypatch, *words, "--generator", tmp_path / "a/bigr") == 2
    assert not (tmp_path / "out/tokenizer.safetensors").exists()


def test_an_unfit_file_is_one_line_and_leaves_nothing_behind(tmp_path, files, monkeypatch, capsys):
    files[1].write_bytes(files[1].read_bytes()[:-5000])
    assert bigr(monkeypatch, "import", "--tokenizer", files[0], "--generator", files[1], "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path, files, monkeypatch):
    monkeypatch.setattr("bigr.interop.published.tensor_files.FileTensor.read", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exchange.import_tokenizer(files[0], tmp_path / "out/tokenizer")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("words", [(), ("--force",)])
def test_of_a_pair_neither_is_written_where_the_second_fails(tmp_path, files, monkeypatch, words):
    exchange.import_pair(*files, tmp_path / "a")
    exchange.export_pair(tmp_path / "a/tokenizer", tmp_path / "a/bigr", tmp_path / "b")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read = FileTensor.read

    def fail(tensor: FileTensor):
        if tensor.shape == (64, 6):  # the generator's tok_embeddings
            raise OSError(28, "No space left on device")
        return read(tensor)

    monkeypatch.setattr(FileTensor, "read", fail)
    places = ("a", "b") if words else ("c", "d")
    imported = ("import", "--tokenizer", files[0], "--generator", files[1], "--out", tmp_path / places[0])
    exported = ("export", "--tokenizer", tmp_path / "a/tokenizer", "--generator", tmp_path / "a/bigr")
    assert bigr(monkeypatch, *imported, *words) == 2
    assert bigr(monkeypatch, *exported, "--out", tmp_path / places[1], *words) == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_models_header_of_another_kind_or_none_is_not_gone_by(tmp_path):
    tensors = publications.generator_tensors(publications.generator_config())
    shape = json.dumps({"code_bits": 1})
    write_tensors(tmp_path / "a.safetensors", tensors, {"kind": "tokenizer", "config": shape})
    assert read_generator(tmp_path / "a.safetensors").config == publications.generator_config()
    write_tensors(tmp_path / "b.safetensors", tensors, {"kind": "bigr", "config": shape})
    assert "its header does not tell the shape" in refused(read_generator, tmp_path / "b.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of one process alone is read from /proc")
def test_importing_needs_far_less_memory_than_the_file_has(tmp_path):
    """Peak resident memory of an import of a 200 MB file, beside that of a process that imports the modules alone."""
    shape = publications.generator_config(dim=1024, heads=16, layers=3, transcoder_dim=512)
    path = publications.save_generator(tmp_path / "g.pt", publications.generator_tensors(shape))
    work = f"bigr.interop.published.exchange.import_generator(Path({str(path)!r}), Path({str(tmp_path / 'model')!r}))"
    whole = f"bytes(Path({str(path)!r}).read_bytes())"
    idle, importing, reading = (peak(code) for code in ("", work, whole))
    assert path.stat().st_size > 1.9e8
    assert reading - idle > 1.8e8  # the measure sees what is read
    assert importing - idle < 1e8, (idle, importing)


def peak(code: str) -> int:
    """Peak resident memory, in bytes, of a process that runs `code`."""
    script = f"import bigr.interop.published.exchange\nfrom pathlib import Path\n{code}\n"
    script += "print(next(x.split()[1] for x in Path('/proc/self/status').open() if x.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return 1024 * int(done.stdout)


def test_the_package_offers_import_and_export_as_functions():
    offered = {name: getattr(interop, name) for name in interop.__all__}
    assert offered == {name: getattr(exchange, name) for name in offered}
    assert {"import_pair", "import_tokenizer", "import_generator", "export_pair"} <= offered.keys()
    with pytest.raises(AttributeError, match="import_everything"):
        _ = interop.import_everything
