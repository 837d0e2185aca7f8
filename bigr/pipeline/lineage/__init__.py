"""Where an artifact comes from, told from DVC, git and MLflow alone: `bigr lineage`.

`records` reads what DVC wrote down (dvc.lock now, at a commit or of an experiment, its cache of runs), `runs` what
MLflow did, `target` finds the artifact that is meant, `chain` follows it upstream, `chain_page` shows it. Nothing is
written, nothing is run, and no torch is imported.
"""
