"""Weights on disk: this project's model folders and the published checkpoints."""
