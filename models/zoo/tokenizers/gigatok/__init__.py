"""The method gigatok: its recipe and the modules that it alone uses."""
