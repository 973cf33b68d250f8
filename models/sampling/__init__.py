"""models.sampling."""
