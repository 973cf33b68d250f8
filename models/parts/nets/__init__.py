"""tokenloom.models.parts.nets."""
