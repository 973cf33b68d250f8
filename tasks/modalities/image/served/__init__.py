"""What travels with a registered model of images, besides ``tokenloom.tasks.serving`` and ``tokenloom.models``."""
