"""The method pq: its recipe and the modules that it alone uses."""
