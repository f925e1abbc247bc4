"""Whether a machine, or a cluster, does what a long run will ask of it."""
