"""The method sigma_gpt: its recipe and the modules that it alone uses."""
