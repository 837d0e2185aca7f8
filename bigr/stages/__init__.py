"""The eight stages of the pipeline, one file each; names as in dvc.yaml and params.yaml."""
