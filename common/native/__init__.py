"""Kernels in C, compiled where they are first needed."""
