"""The generator: the masked backbone, and the transcoder with its Bernoulli diffusion."""
