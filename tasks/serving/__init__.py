"""What travels with a registered model: torch, numpy, pillow and the package ``models`` are all that it needs."""
