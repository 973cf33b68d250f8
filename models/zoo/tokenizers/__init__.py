"""models.zoo.tokenizers."""
