"""FlowAR: the recipe, and the module that it builds."""
