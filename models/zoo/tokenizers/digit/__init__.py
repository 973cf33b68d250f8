"""The method digit: its recipe and the modules that it alone uses."""
