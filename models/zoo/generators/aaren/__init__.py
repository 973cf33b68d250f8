"""The method aaren: its recipe and the modules that it alone uses."""
