"""Images that a source draws itself, at the size of the data set."""
