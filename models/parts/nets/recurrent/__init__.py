"""Recurrent states beyond one slot after another."""
