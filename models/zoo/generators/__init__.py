"""models.zoo.generators."""
