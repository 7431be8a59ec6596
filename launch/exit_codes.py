"""Exit codes of every command."""

SUCCESS = 0
FAILURE = 1
USER_ERROR = 2
INTERRUPTED = 130
