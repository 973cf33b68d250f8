"""The method oar: its recipe and the modules that it alone uses."""
