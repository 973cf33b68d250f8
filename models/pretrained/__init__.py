"""models.pretrained."""
