"""From raw sources to batches: reading, shards, loading, views."""
