"""How fast it is, against plain readings of the published algorithms: ``python -m benchmarks.speed --help``."""
