"""Autoencoders with Gaussian latents, trained on objectives beside the bound."""
