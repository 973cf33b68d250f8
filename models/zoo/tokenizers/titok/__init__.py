"""The method titok: its recipe and the modules that it alone uses."""
