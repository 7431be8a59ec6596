"""Exit codes of every command."""

SUCCESS = 0
FAILURE = 1
USER_ERROR = 2
SIGNALLED = 128  # and the number of the signal
INTERRUPTED = SIGNALLED + 2
