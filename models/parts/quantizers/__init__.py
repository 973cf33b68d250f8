"""models.parts.quantizers."""
