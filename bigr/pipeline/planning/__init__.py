"""What a params.yaml will cost, before anything is trained: `bigr plan`."""
