"""What a training costs: counted before it, measured while it works."""
