"""models.parts.heads"""
