"""The steps of the pipeline, one file each; ``table.py`` lists them in order."""
