"""tokenloom.models.zoo.tokenizers."""
