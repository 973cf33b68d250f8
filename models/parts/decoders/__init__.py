"""models.parts.decoders."""
