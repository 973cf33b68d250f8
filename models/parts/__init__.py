"""tokenloom.models.parts."""
