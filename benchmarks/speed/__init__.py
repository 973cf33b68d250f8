"""How fast it is, against plain readings of the published algorithms: ``python -m benchmarks.speed sampling|training|loader|loop|start``."""
