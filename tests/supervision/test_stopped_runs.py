"""Runs under each launcher that are asked to stop, or lose a rank or their launcher."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from live_runs import SETTINGS, LiveRun, metric_lines, saved_step, steps, weights

from launch.cli import main

Start = Callable[..., LiveRun]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a run under a launcher; ends what is left of it."""
    runs = []

    def start(launcher: str, config: str, *words: str) -> LiveRun:
        runs.append(LiveRun(launcher, config, *words))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def check_that_it_goes_on(config: str, name: str) -> None:
    """Goes on in this process, to what an undisturbed run has come to."""
    assert 0 < saved_step(name) < 16
    assert main(["train", config, f"run.name={name}", *SETTINGS]) == 0
    expected = weights("whole")
    for key, tensor in weights(name).items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-8, atol=1e-10)
    kinds = [(line["step"], line["split"]) for line in metric_lines(name)]
    assert kinds == [(line["step"], line["split"]) for line in metric_lines("whole")]


def test_a_signal_to_the_command_saves_and_a_hanging_rank_ends_it(
    config: str, start: Start
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
    check_that_it_goes_on(config, "command")


def test_torchrun_starts_again_after_a_lost_rank_and_hands_signals_on(
    config: str, start: Start
) -> None:
    words = ("checkpoint.every=2", "data.workers=1", "monitor.progress=true")
    run = start("torchrun", config, "run.name=torchrun", *words)
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
    check_that_it_goes_on(config, "torchrun")


def test_ranks_of_a_deepspeed_launcher_that_is_gone_save_and_end(config: str, start: Start) -> None:
    run = start("deepspeed", config, "run.name=deepspeed")
    run.wait_for_steps("deepspeed", step=1)
    run.process.terminate()
    assert run.code() == -signal.SIGTERM, "it ends alone, and leaves its launch.py and the ranks"
    run.wait_until_nothing_is_left()
    assert "stopped by its launcher is gone after step" in run.text()
    assert steps("deepspeed")[-1] == saved_step("deepspeed")
    check_that_it_goes_on(config, "deepspeed")
