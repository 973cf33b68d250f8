"""The method nar: its recipe and the modules that it alone uses."""
