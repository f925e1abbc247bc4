"""Strict configuration: schema, TOML, overrides, known keys."""
