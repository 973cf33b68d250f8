"""The method maskgit: its recipe and the modules that it alone uses."""
