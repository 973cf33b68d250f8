"""The method titok_uvitbert: its recipe and the modules that it alone uses."""
