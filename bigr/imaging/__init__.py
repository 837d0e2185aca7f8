"""Images of any size in, images out: what the model does without further training (docs/method.md, section 5)."""
