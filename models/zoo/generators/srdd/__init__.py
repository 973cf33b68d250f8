"""The method srdd: its recipe and the modules that it alone uses."""
