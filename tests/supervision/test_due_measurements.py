"""A measurement that a stop interrupts is made by the next start, and reported once."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from live_runs import metric_lines, weights

from launch.cli import main
from msam_scale.checkpoint import Progress, find_checkpoint
from msam_scale.supervision.supervision import Supervision

# A step is an epoch, and everything is measured after each.
_SETTINGS = (
    *("batch.size=720", "training.steps=2", "training.eval_every=1", "monitor.every=1"),
    *("monitor.sharpness_every=1", "monitor.sharpness_samples=32", "monitor.tensorboard=false"),
)


def _train(config: str, name: str) -> int:
    return main(["train", config, f"run.name={name}", *_SETTINGS])


def _signal_at(phase: str, patch: pytest.MonkeyPatch) -> None:
    """The next time that a phase begins, this process is signalled, and has heard it."""
    beat = Supervision.beat

    def signalling(supervision: Supervision, now: str, *, step: int | None = None) -> None:
        beat(supervision, now, step=step)
        if now == phase:
            os.kill(os.getpid(), signal.SIGTERM)
            while not supervision.stop._asked:
                time.sleep(0.01)

    patch.setattr(Supervision, "beat", signalling)


def _due(name: str) -> list[str]:
    due: list[str] = Progress.read(find_checkpoint(f"runs/{name}/checkpoints")).extra["due"]
    return due


def test_what_a_stop_interrupts_stays_due(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(config, "undisturbed") == 0
    for phase, due in [("evaluation", ["evaluation", "sharpness"]), ("sharpness", ["sharpness"])]:
        with pytest.MonkeyPatch.context() as patch:
            _signal_at(phase, patch)
            assert _train(config, "disturbed") == 75
        assert _due("disturbed") == due
        assert "stopped by SIGTERM after step 1 of 2, saved in" in capsys.readouterr().out
    assert _train(config, "disturbed") == 0
    assert _due("disturbed") == []
    figures = ("step", "split", "loss", "accuracy", "sharpness")
    found, expected = (
        [[line.get(name) for name in figures] for line in metric_lines(run)]
        for run in ("disturbed", "undisturbed")
    )
    assert found == expected
    expected_weights = weights("undisturbed")
    assert all(torch.equal(expected_weights[name], t) for name, t in weights("disturbed").items())


def test_a_stop_before_the_first_step_saves_nothing(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _signal_at("starting", patch)
        assert _train(config, "early") == 75
    assert "stopped by SIGTERM before the first step; start again to begin" in (
        capsys.readouterr().out
    )
    assert not metric_lines("early")
