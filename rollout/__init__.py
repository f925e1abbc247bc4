"""Turns labels and image prefixes into token sequences of the current student."""

DISTRIBUTION = "varkd"
