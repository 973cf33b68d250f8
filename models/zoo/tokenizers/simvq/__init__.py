"""The method simvq: its recipe and the modules that it alone uses."""
