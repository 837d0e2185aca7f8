"""The published checkpoints: to model folders of this project, and back (docs/weights.md)."""
