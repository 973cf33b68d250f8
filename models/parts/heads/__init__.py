"""tokenloom.models.parts.heads"""
