"""The methods: one recipe each, with what serves it alone."""
