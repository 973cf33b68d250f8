"""The method hmar: its recipe and the modules that it alone uses."""
