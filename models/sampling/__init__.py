"""tokenloom.models.sampling."""
