"""The method rvq: its recipe and the modules that it alone uses."""
