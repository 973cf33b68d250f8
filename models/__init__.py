"""Autoregressive generative models: torch only, parts and recipes."""
