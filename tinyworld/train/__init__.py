"""The recipe of the tiny world: draws the data, then trains the text encoder, VAE, UNet and judges one by one."""
