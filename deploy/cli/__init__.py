"""The command line: grammar, shared arguments, the config reference."""
