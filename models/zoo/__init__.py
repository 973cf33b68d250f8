"""tokenloom.models.zoo."""
