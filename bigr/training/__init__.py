"""One training loop for every stage: checkpoints, EMA, optimiser, distributed."""
