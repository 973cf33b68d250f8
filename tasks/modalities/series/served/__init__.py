"""What travels with a registered forecaster: torch, numpy, the package ``models`` and ``tasks.serving`` are all that it needs."""
