"""tokenloom.models.parts.quantizers."""
