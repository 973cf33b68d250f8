"""Conditioners on more than a class or a text."""
