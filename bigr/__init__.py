"""BiGR: image generation and visual representation from binary latent codes."""
