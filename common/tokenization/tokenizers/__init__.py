"""One file per image tokenizer; the file name is its `kind`."""
