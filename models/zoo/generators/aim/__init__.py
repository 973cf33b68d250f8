"""The method aim: its recipe and the modules that it alone uses."""
