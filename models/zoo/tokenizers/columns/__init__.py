"""The method columns: its recipe and the modules that it alone uses."""
