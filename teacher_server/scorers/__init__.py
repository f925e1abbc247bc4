"""One file per scorer; the file name is its `kind`."""
