"""One file per teacher signal; the file name is its `kind`."""
