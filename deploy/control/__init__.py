"""A run that goes on, and commands that talk to it from elsewhere through its folder."""
