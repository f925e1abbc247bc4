"""What sections of a config must agree on, by topic; deploy/config.py asks each."""
