"""Closed-form flows from Gaussian noise to the codes of a codebook (docs/one_step.md)."""
