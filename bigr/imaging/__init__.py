"""Pictures of any size and form in, pictures out: what the model does without further training (METHOD section 5)."""
