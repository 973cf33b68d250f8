"""Ways to decode, as values."""
