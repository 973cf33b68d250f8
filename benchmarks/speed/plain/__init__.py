"""Plain readings of published algorithms, step by step as the official code does it, under its names of weights; for timing alone."""
