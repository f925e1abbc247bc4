"""Decoding as CUDA graphs, one token of every sequence a step."""
