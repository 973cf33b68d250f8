"""PFGM++: the recipe, and the modules that it builds."""
