"""The method token_shuffle: its recipe and the modules that it alone uses."""
