"""The binary tokenizer: an autoencoder, its quantizers, and the discriminator and LPIPS that it is trained with."""
