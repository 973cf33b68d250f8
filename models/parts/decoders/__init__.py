"""tokenloom.models.parts.decoders."""
