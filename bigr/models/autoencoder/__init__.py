"""The binary tokenizer: an autoencoder, its quantizers, and what it is trained against."""
