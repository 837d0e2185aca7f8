"""The Prefect flow that runs the pipeline. Knows stages by name only; imports no torch."""
