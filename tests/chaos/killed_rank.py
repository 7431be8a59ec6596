"""Has a rank be killed when it comes to a stage.

KILL=STAGE:WHO:NUMBER in the environment, where WHO is `rank` (one of those at that stage), `all` or
`launcher`, and NUMBER counts how often this start comes there. The processes are killed by SIGKILL:
nothing of theirs runs any more.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from data_pipelines.durable_files import partial_name
from msam_scale.checkpoint import commit, folder, shard_files
from msam_scale.checkpoint import writer as checkpoint_writer
from msam_scale.supervision.supervision import Supervision
from msam_scale.training.evaluation import Evaluator

# By the names of what is called at each: before it, for all but `save_file`, where half a file has
# been written.
SAVING = {
    "before": (commit, "_begin"),
    "during data": (shard_files, "save_file"),
    "before the progress": (commit, "_write_progress"),
    "before the manifest": (commit, "_write_manifest"),
    "before the rename": (commit, "_give_name"),
    "before latest": (commit, "mark_latest"),
    "during latest": (folder, "replace_file"),
    "before deletion": (commit, "prune_checkpoints"),
    "during deletion": (commit.prune_checkpoints.__globals__["shutil"], "rmtree"),
}
STAGES = SAVING | {"evaluation": (Evaluator, "evaluate"), "end": (Supervision, "finish")}


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
    times = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal times
            times += 1
            return function(*arguments, **named)

        return call

    def kills(*arguments: Any, **named: Any) -> Any:
        if times >= number:
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

    if stage in SAVING:  # of which one save may come to a stage several times
        checkpoint_writer.write_checkpoint = counted(checkpoint_writer.write_checkpoint)
        setattr(owner, name, kills)
    else:
        setattr(owner, name, counted(kills))


def arm(kill: str) -> None:
    """Has this rank be killed, if it is one of those.

    Args:
        kill: STAGE:WHO:NUMBER.
    """
    stage, who, number = kill.split(":")
    if who != "rank" or os.environ["RANK"] == ("1" if stage == "during data" else "0"):
        _arm(stage, who, int(number))
