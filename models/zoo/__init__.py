"""models.zoo."""
