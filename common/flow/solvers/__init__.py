"""One file per solver; the file name is its `kind`."""
