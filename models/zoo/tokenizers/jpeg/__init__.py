"""The method jpeg: its recipe and the modules that it alone uses."""
