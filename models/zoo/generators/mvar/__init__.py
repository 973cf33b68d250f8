"""The method mvar: its recipe and the modules that it alone uses."""
