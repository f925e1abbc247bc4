"""One file per context source; the file name is its `kind`."""
