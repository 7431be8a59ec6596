"""Real jobs that are killed again and again: `python -m tests.chaos`."""
