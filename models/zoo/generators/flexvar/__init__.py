"""The method flexvar: its recipe and the modules that it alone uses."""
