"""Published sizes of generators of continuous tokens."""
