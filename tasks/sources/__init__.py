"""Files of a source, wherever they lie: on this machine, in a bucket, behind an address, on the hub."""
