"""Entropy-ordered unmasking (docs/method.md, section 4)."""
