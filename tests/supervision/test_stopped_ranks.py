"""Two ranks that are signalled, hang, or lose each other: they save or say so, and end."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator

import pytest
from live_runs import LiveRanks, saved_step, steps
from undisturbed import SETTINGS

# In small chunks, which take longer.
_SLOWLY = (*SETTINGS, "batch.chunk=4", "run.name=disturbed")
Start = Callable[..., LiveRanks]


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
