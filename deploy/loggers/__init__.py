"""Where a run's rows go beside its folder: one file per kind; the directory is the registry."""
