"""Runs under each launcher that are asked to stop, hang, or lose a rank or their launcher."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator

import pytest
from live_runs import LiveRun, saved_step, steps
from undisturbed import SETTINGS

pytestmark = pytest.mark.part("signals")
Start = Callable[..., LiveRun]
GoesOn = Callable[[str], None]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a run under a launcher; ends what is left of it."""
    runs = []

    def start(launcher: str, config: str, *words: str, restarts: int = 0) -> LiveRun:
        words = (*SETTINGS, "batch.chunk=4", *words)
        runs.append(LiveRun(launcher, config, *words, restarts=restarts))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def test_a_signal_to_the_command_saves_and_a_hanging_rank_ends_it(
    config: str, start: Start, goes_on: GoesOn
) -> None:
    run = start("msam-scale", config, "run.name=command", "data.workers=1")
    run.wait_for_steps("command", step=1)
    run.process.send_signal(signal.SIGUSR1)
    assert run.code() == 75, run.text()
    run.wait_until_nothing_is_left()
    step = saved_step("command")
    assert steps("command")[-1] == step, "the last step done is saved"
    said = f"stopped by SIGUSR1 after step {step} of 16, saved in runs/command/checkpoints/step-"
    assert run.text().count(said) == 1
    assert "Traceback" not in run.text()

    run = start("msam-scale", config, "run.name=command", "faults.timeout=8", "data.workers=1")
    run.wait_for_steps("command", step=step + 1)
    run.rank(1).suspend()
    run.wait_for_text("no progress for 8 s in")
    # The launcher's signals do not reach a stopped process; it waits for SIGKILL.
    run.rank(1).kill()
    assert run.code() == 1, run.text()
    run.wait_until_nothing_is_left()
    found = re.search(
        r"msam-scale, rank 0: no progress for 8 s in .* of step \d+; waiting in \w+ "
        r"\(msam_scale/.*py:\d+\); ranks that have not come as far: rank 1 \(.*no longer heard of",
        run.text(),
    )
    assert found, run.text()
    goes_on("command")


def test_torchrun_starts_again_after_a_lost_rank_and_hands_signals_on(
    config: str, start: Start, goes_on: GoesOn
) -> None:
    words = ("checkpoint.every=2", "data.workers=1", "monitor.progress=true")
    run = start("torchrun", config, "run.name=torchrun", *words, restarts=1)
    run.wait_for_steps("torchrun", step=3)
    lost = run.rank(1)
    lost.kill()
    run.wait_for_text("another rank is gone (rank 1): lost the connection while in")
    lost.wait(60)
    before = saved_step("torchrun")
    assert before >= 2
    # By then the lines of steps that are done again are gone.
    run.wait_for_text(f"resumed after step {before} of 16")
    run.wait_for_steps("torchrun", step=before + 1)
    run.process.terminate()
    assert run.code() == 1, run.text()
    run.wait_until_nothing_is_left()
    assert "stopped by SIGTERM after step" in run.text()
    goes_on("torchrun")


def test_ranks_of_a_deepspeed_launcher_that_is_gone_save_and_end(
    config: str, start: Start, goes_on: GoesOn
) -> None:
    run = start("deepspeed", config, "run.name=deepspeed")
    run.wait_for_steps("deepspeed", step=1)
    run.process.terminate()
    assert run.code() == -signal.SIGTERM, "it ends alone, and leaves its launch.py and the ranks"
    run.wait_until_nothing_is_left()
    assert "stopped by its launcher is gone after step" in run.text()
    assert steps("deepspeed")[-1] == saved_step("deepspeed")
    goes_on("deepspeed")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_each_signal_to_the_command_ends_all_ranks_with_one_line(
    sent: signal.Signals, config: str, start: Start
) -> None:
    name = sent.name.lower()
    run = start("msam-scale", config, f"run.name={name}", "training.steps=100000")
    run.wait_for_steps(name, step=1)
    run.process.send_signal(sent)
    assert run.code() == 75, run.text()
    assert run.text().count(f"msam-scale: {sent.name}: stopping") == 1
    assert "Traceback" not in run.text()
