"""models.parts."""
