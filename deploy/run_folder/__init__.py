"""A run folder: its files, its lock, its identity, how a run begins in it."""
