"""Ways to decode with fewer layers, or parts of layers."""
