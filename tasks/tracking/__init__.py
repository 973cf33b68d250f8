"""The only door to MLflow: runs, the model registry, model cards."""
