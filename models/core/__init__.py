"""Configs, the registry, the contracts between models, draws, specs of saved models."""
