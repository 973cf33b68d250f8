"""The steps of the pipeline and all that they depend on."""
