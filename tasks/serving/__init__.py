"""What travels with a registered model: torch, numpy, the package ``models`` and its kind's room ``served`` are all that it needs."""
