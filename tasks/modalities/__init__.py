"""Kinds of signals, one room each: everything that knows what an image, or a series, is."""
