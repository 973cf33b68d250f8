"""Discriminators of images and the losses that train a tokenizer against them."""
