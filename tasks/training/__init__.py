"""The training loop and what it holds: optimizer, sharded state, checkpoints, curves."""
