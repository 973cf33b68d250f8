"""Decoders of tokenizers that draw what the tokens leave open."""
