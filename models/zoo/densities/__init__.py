"""Methods that model the signal itself, without tokens."""
