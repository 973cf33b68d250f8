"""What the authors of the methods published: sizes with their exact parameter counts, trainings, checkpoints; one file a family"""
