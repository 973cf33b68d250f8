"""The shards of a dataset made: one at a time, by threads or by actors on any number of nodes."""
