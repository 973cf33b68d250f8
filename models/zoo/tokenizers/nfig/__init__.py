"""The method nfig: its recipe and the modules that it alone uses."""
