"""NextStep-1: the recipe, and the module that it builds."""
