"""Before a rank that `KILL` in its environment is meant for runs its own program."""

import os
import sys

# In a rank's own process, whatever launcher has started it; not in its helpers.
if {"KILL", "RANK"} <= os.environ.keys() and any(
    word.endswith("launch/train.py") for word in sys.orig_argv
):
    from tests.chaos.killed_rank import arm

    arm(os.environ["KILL"])
