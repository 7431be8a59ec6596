"""Starts the ranks of a run on this machine, and hands signals on to them."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from types import FrameType

import psutil

from launch.exit_codes import FAILURE, SIGNALLED, SUCCESS
from msam_scale.supervision.signals import give_back, take_over

# By path: `python -m launch.train` would look for `launch` in the working folder first.
_RANK_SCRIPT = Path(__file__).with_name("train.py")
# For a rank that has ended itself at the end of its grace.
_SECONDS_AFTER_GRACE = 5


def start_ranks(num_ranks: int, words: Sequence[str], *, grace: float) -> int:
    """Starts ranks as `torchrun --standalone` does, without its report of a failure.

    Signals to stop are handed on to the ranks, which save and end; torch's own handlers would hide
    how they ended.

    Args:
        num_ranks: W.
        words: the arguments of each.
        grace: seconds that ranks may take to end.

    Returns:
        The exit code of the rank that ended first with another one than 0, if any did.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGQUIT",
        shutdown_timeout=ceil(grace) + _SECONDS_AFTER_GRACE,
    )
    handed_on: list[int] = []
    try:
        with _handing_signals_on(handed_on):
            elastic_launch(config, sys.executable)(str(_RANK_SCRIPT), *words)
    except SignalException as error:
        name = error.sigval.name
        print(f"msam-scale: ended by {name}; ranks are stopped", file=sys.stderr)
        return SIGNALLED + error.sigval
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        # Before a rank hears signals they end it, as it has nothing to save.
        return SIGNALLED - failure.exitcode if handed_on else FAILURE
    return SUCCESS


@contextmanager
def _handing_signals_on(handed_on: list[int]) -> Iterator[None]:
    def hand_on(number: int, frame: FrameType | None) -> None:
        handed_on.append(number)
        ranks = psutil.Process().children()
        if not ranks:
            sys.exit(SIGNALLED + number)
        for rank in ranks:
            try:
                rank.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    before = take_over(hand_on)
    try:
        yield
    finally:
        give_back(before)
