"""Ways to decode scale after scale with less work or memory."""
