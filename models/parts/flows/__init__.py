"""Invertible flows: maps whose inverse and log-determinant are exact."""
