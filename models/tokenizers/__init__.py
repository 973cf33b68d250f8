"""Whole tokenizers that more than one recipe uses."""
