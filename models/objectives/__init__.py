"""What a training minimises, given a model: one file an objective."""
