"""Where an artifact comes from, by the records of DVC, git and MLflow: `bigr lineage`. It imports no torch."""
