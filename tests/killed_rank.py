"""A rank of `launch/train.py` that is killed at a stage of a save: torchrun starts it.

KILL=STAGE:WHO:NUMBER in the environment, where WHO is `rank` (one of those at that stage), `all` or
`launcher`, and NUMBER counts the saves of this start. The processes are killed by SIGKILL: nothing
of theirs runs any more.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from data_pipelines.durable_files import partial_name
from launch.train import _end, main
from msam_scale.checkpoint import commit, folder, shard_files, writer

# By the names of what is called at each: before it, for all but `_write_own`, where one file has
# been written.
STAGES = {
    "before": (commit, "_new_folder"),
    "during data": (shard_files, "save_file"),
    "before the progress": (commit, "_write_progress"),
    "before the manifest": (commit, "_write_manifest"),
    "before the rename": (commit, "_give_name"),
    "before latest": (commit, "mark_latest"),
    "during latest": (folder, "replace_file"),
    "before deletion": (commit, "prune_checkpoints"),
    "during deletion": (commit.prune_checkpoints.__globals__["shutil"], "rmtree"),
}


def _kill(who: str) -> None:
    os.write(2, b"KILLED\n")
    launcher = psutil.Process(os.getppid())
    if who == "launcher":
        launcher.kill()
        return
    if who == "all":
        for rank in launcher.children():
            if rank.pid != os.getpid():
                rank.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(stage: str, who: str, number: int) -> None:
    owner, name = STAGES[stage]
    original: Callable[..., Any] = getattr(owner, name)
    write = writer.write_checkpoint
    saves = 0

    def counts(*arguments: Any) -> Any:
        nonlocal saves
        saves += 1
        return write(*arguments)

    def kills(*arguments: Any, **named: Any) -> Any:
        if saves >= number:
            if stage == "during data":
                original(*arguments, **named)
                os.truncate(arguments[1], arguments[1].stat().st_size // 2)
            if stage == "during latest":
                partial_name(arguments[0]).write_bytes(arguments[1][:5])
            if stage == "during deletion":
                victim = next(Path(arguments[0]).iterdir())
                victim.unlink()
            _kill(who)
        return original(*arguments, **named)

    setattr(owner, name, kills)
    writer.write_checkpoint = counts


def arm(kill: str) -> None:
    """Has this rank be killed, if it is one of those.

    Args:
        kill: STAGE:WHO:NUMBER.
    """
    stage, who, number = kill.split(":")
    if who != "rank" or os.environ["RANK"] == ("1" if stage == "during data" else "0"):
        _arm(stage, who, int(number))


if __name__ == "__main__":
    if "KILL" in os.environ:
        arm(os.environ["KILL"])
    _end(main(sys.argv[1:]))
