"""The Prefect flow that runs the pipeline. Knows stages by name only: it executes DVC, has no model code, imports no torch."""
