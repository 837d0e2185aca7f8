"""Finished models as versions: packages, the gate, promotion, serving."""
