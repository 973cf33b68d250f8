"""Nets: transformers, recurrent nets and convolutions."""
