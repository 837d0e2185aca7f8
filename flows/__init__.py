"""The Prefect flow that runs the pipeline: it executes DVC, knows stages by name only, and imports no torch."""
