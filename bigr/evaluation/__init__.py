"""Fidelity, representation and plots."""
