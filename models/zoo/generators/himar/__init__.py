"""Hi-MAR: the recipe, and the module that it builds."""
