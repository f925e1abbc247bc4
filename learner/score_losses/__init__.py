"""Losses between velocities and scores of noisy vectors (docs/one_step.md, "Losses")."""
