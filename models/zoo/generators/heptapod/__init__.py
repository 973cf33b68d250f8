"""The method heptapod: its recipe and the modules that it alone uses."""
