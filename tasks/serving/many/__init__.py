"""A model that answers many at once: a queue with a limit before an engine that shares passes of the net."""
