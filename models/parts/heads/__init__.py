"""Heads: the distribution of a token given its hidden state."""
