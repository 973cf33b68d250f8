"""Artifacts, their records, and the storage below them."""
