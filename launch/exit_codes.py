"""Exit codes of every command."""

SUCCESS = 0
FAILURE = 1
USER_ERROR = 2
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: stopped by a signal, saved, and to be started again
SIGNALLED = 128  # and the number of the signal
INTERRUPTED = SIGNALLED + 2
