"""Where an artifact comes from, by the records of DVC, git and MLflow: `bigr lineage`.

`records` reads DVC's records (dvc.lock and the run cache), `runs` those of MLflow, `target` finds the artifact that is
meant, `chain` follows it upstream, `chain_page` shows it. Nothing is written, and no torch is imported.
"""
