"""The method vir: its recipe and the modules that it alone uses."""
