"""The method tokenbridge_ar: its recipe and the modules that it alone uses."""
