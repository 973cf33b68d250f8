"""The method arpg: its recipe and the modules that it alone uses."""
