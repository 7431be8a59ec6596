"""Entry points: the command line and what starts training on many ranks."""
