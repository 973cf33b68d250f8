"""The method layton: its recipe and the modules that it alone uses."""
