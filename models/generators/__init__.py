"""Whole generators that more than one recipe uses."""
