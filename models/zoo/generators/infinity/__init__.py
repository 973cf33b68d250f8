"""The method infinity: its recipe and the modules that it alone uses."""
