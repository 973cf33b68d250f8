"""The method maskgit_vqgan: its recipe and the modules that it alone uses."""
