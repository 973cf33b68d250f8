"""Samples, metrics, pictures, reports and the gate."""
