"""models.parts.nets."""
