"""tokenloom.models.zoo.generators."""
