"""Decoding steps in C."""
