"""One file per `varkd` command; the file name is the command."""
