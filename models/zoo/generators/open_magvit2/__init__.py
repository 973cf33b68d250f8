"""The method open_magvit2: its recipe and the modules that it alone uses."""
