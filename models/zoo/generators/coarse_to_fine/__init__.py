"""The method coarse_to_fine: its recipe and the modules that it alone uses."""
