"""FAR by frequencies: the recipe, and the module that it builds."""
