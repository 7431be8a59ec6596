"""The sections of the config, a few to a file."""
