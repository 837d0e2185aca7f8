"""Finished models as versions in MLflow's registry: packages, the gate, serving."""
