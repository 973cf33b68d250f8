"""The method ibq: its recipe and the modules that it alone uses."""
