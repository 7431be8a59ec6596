"""Tells the loss of another rank from an error of this one."""

from __future__ import annotations

import os

from data_pipelines.errors import a_few
from msam_scale.supervision.heartbeats import Heartbeats
from msam_scale.supervision.own_frames import place_of_failure

# How gloo, NCCL and the store say that nobody is at the other end.
_SIGNS = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "remote process exited",
    "connection was likely closed",
    "failed to recv, got 0 bytes",
    "connectfullmesh failed",
)
_NO_ANSWER = ("timed out waiting", "timed out after", "wait timeout")


def lost_rank(error: BaseException, *, heartbeats: Heartbeats | None, step: int) -> str | None:
    """One line for an error that says that another rank is gone; None for any other error.

    Args:
        error: what a collective raised.
        heartbeats: of all ranks; they may tell which one is missing, which takes a few seconds.
        step: the step that this rank is at.
    """
    text = str(error)
    if not isinstance(error, RuntimeError):
        return None
    is_lost = any(sign in text.lower() for sign in _SIGNS)
    if not is_lost and not any(sign in text.lower() for sign in _NO_ANSWER):
        return None
    what = "lost the connection" if is_lost else "no answer from it"
    place = place_of_failure(error.__traceback__)
    reason = " ".join(text.split("\n")[0].split())[:200]
    return (
        f"another rank is gone ({_missing(heartbeats)}): {what} while in {place}, in step {step}: "
        f"{reason}"
    )


def _missing(heartbeats: Heartbeats | None) -> str:
    found = None if heartbeats is None else heartbeats.survey()
    if found is None:
        if heartbeats is not None and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ:
            return "probably rank 0: the ranks' store, which it keeps, does not answer"
        return "which one is not known"
    _, silent = found
    if not silent:
        return "which one is not known"
    return f"rank{'s' if len(silent) > 1 else ''} {a_few(silent, most=16)}"
