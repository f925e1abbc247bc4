"""Sources of training tokens, one file per kind."""
