"""Two ranks that are signalled, hang, or lose each other: they save or say so, and end."""

from __future__ import annotations

import multiprocessing
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import replaced
from live_runs import LiveRanks, saved_step, steps
from undisturbed import SETTINGS
from warm_processes import say_into, start_warm

from launch.train import train_rank
from msam_scale import engine
from msam_scale.checkpoint import writer
from msam_scale.supervision import supervision
from msam_scale.training.evaluation import Evaluator

# In small chunks, which take longer.
_SLOWLY = (*SETTINGS, "batch.chunk=4", "run.name=disturbed")
Start = Callable[..., LiveRanks]
# Functions of the main thread; a loader process is killed as each begins.
_STAGES: dict[str, tuple[Any, str]] = {
    "step": (engine, "run_step"),
    "evaluation": (Evaluator, "evaluate"),
    "saving": (writer, "write_checkpoint"),
    "end": (supervision.Supervision, "finish"),
}


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts two ranks; ends what is left of them."""
    runs = []

    def start(*words: str) -> LiveRanks:
        runs.append(LiveRanks(*words))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


@pytest.mark.layouts
def test_a_run_that_is_stopped_hangs_and_loses_a_rank_ends_as_if_nothing_had_been(
    config: str, start: Start, goes_on: Callable[[str], None]
) -> None:
    run = start(config, *_SLOWLY, "data.workers=1")
    run.wait_for_steps("disturbed", step=1)
    run.send(signal.SIGUSR1, rank=1)
    assert run.codes() == [75, 75], run.text()
    step = saved_step("disturbed")
    assert steps("disturbed")[-1] == step, "the last step done is saved"
    said = f"stopped by SIGUSR1 after step {step} of 16, saved in runs/disturbed/checkpoints/step-"
    assert run.text().count(said) == 1
    assert "Traceback" not in run.text()

    run = start(config, *_SLOWLY, "faults.timeout=4")
    run.wait_for_steps("disturbed", step=step + 1)
    run.send(signal.SIGSTOP, rank=1)
    run.wait_for_text("no progress for 4 s in")
    run.send(signal.SIGKILL, rank=1)  # nothing else reaches it
    assert run.codes() == [1, -signal.SIGKILL], run.text()
    found = re.search(
        r"msam-scale, rank 0: no progress for 4 s in .* of step \d+; waiting in \w+ "
        r"\(msam_scale/.*py:\d+\); ranks that have not come as far: rank 1 \(.*no longer heard of",
        run.text(),
    )
    assert found, run.text()
    assert saved_step("disturbed") == step

    run = start(config, *_SLOWLY, "checkpoint.every=2", "monitor.progress=true")
    run.wait_for_text(f"resumed after step {step} of 16")
    run.wait_for_steps("disturbed", step=step + 2)
    run.send(signal.SIGKILL, rank=1)
    assert run.codes() == [1, -signal.SIGKILL], run.text()
    assert "another rank is gone (rank 1): lost the connection while in" in run.text()
    assert "Traceback" not in run.text()
    goes_on("disturbed")


def _lose_a_loader(config: str, stage: str, log: str) -> None:
    """Trains in this process, one of whose loaders is killed when the stage is first reached."""
    say_into(log)
    owner, name = _STAGES[stage]
    reached = getattr(owner, name)

    def lose_and_go_on(*arguments: Any, **named: Any) -> Any:
        for loader in multiprocessing.active_children()[-1:]:
            loader.kill()
            time.sleep(1)  # torch raises within it
        return reached(*arguments, **named)

    words = (*SETTINGS, f"run.name={stage}", "data.workers=1", "checkpoint.every=4")
    with replaced(owner, name, lose_and_go_on):
        sys.exit(train_rank(config, overrides=words))


@pytest.mark.parametrize("stage", _STAGES)
def test_a_killed_loader_is_one_line_at_every_stage(config: str, stage: str) -> None:
    log = Path(f"{stage}.log")
    process = start_warm(_lose_a_loader, config, stage, str(log.absolute()))
    process.join()
    said = log.read_text()
    assert process.exitcode == 2, said
    assert said.count("lost a loader process (pid ") == 1
    assert "killed by signal: Killed), probably for want of memory; " in said
    assert "Traceback" not in said
