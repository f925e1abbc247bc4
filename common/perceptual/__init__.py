"""Frozen networks by which images are compared; roles that train and roles that score may ask."""
