"""Encoders of texts: byte pairs that a model learns to read, and frozen encoders (CLIP, T5)."""
