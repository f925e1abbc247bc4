"""One file per stage; its command and the study call the same function."""
