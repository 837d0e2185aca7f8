"""How stages fit together: dvc.yaml, the check, the runner; planning, lineage, the study; `bigr.load`."""
