"""Adds the frozen teacher's opinion to trajectories."""

DISTRIBUTION = "varkd"
