"""Entropy-ordered unmasking (METHOD: section 4 of the paper's method)."""
