"""One file per table of conditions; the file name is its `kind`."""
