"""What is promised of each launcher, on one run of it that is stopped and one with a mistake."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from live_runs import LiveRun, figures, metric_lines, saved_step, steps, weights
from rank_pool import OnRanks
from runs_on_ranks import train

CONFIG = """
model: {source: msam_scale, name: wrn-10-1}
data: {train: "DIGITS/train", val: "DIGITS/val"}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 32, norm_samples: 4, chunk: 4}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
schedule: {name: one_cycle, warmup: 0.1}
training: {steps: 20, eval_every: 8}
monitor: {every: 1, tensorboard: false, progress: false}
"""
NUM_STEPS = 20
FIGURES = ("step", "split", "loss", "lr", "grad_norm", "ascent_norm", "accuracy", "samples")
Start = Callable[..., LiveRun]


@dataclass(frozen=True)
class Case:
    """A launcher and what it makes of its ranks' ends.

    Attributes:
        strategy: that it is tested with.
        code: after SIGTERM.
        says: what stopped the ranks.
        mistake: its code after one that the user can mend.
    """

    strategy: str
    code: int
    says: str
    mistake: int


CASES = {
    "msam-scale": Case("replicated", 75, "SIGTERM", 2),
    "torchrun": Case("fsdp", 1, "SIGTERM", 1),
    # It ends alone, and leaves its launch.py and the ranks.
    "deepspeed": Case("zero3", -signal.SIGTERM, "its launcher is gone", 2),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[str]:
    """A config in a folder that is the working folder."""
    folder = tmp_path_factory.mktemp("launchers")
    path = folder / "small.yaml"
    path.write_text(CONFIG.replace("DIGITS", str(digits)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield str(path)


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


@pytest.mark.layouts
@pytest.mark.parametrize("launcher", CASES)
def test_a_run_is_stopped_in_order_and_is_that_of_any_ranks(
    launcher: str, config: str, start: Start, on_ranks: OnRanks
) -> None:
    """Metrics and weights are bit for bit those of ranks that no launcher has started."""
    case = CASES[launcher]
    words = [f"sharding.strategy={case.strategy}"]
    on_ranks(2, train, config, str(Path.cwd()), [*words, "run.name=whole-" + launcher])
    run = start(launcher, config, *words, f"run.name={launcher}")
    run.wait_for_steps(launcher, step=1)
    run.process.terminate()
    assert run.code() == case.code, run.text()
    run.wait_until_nothing_is_left()
    step = saved_step(launcher)
    assert 0 < step < NUM_STEPS
    assert steps(launcher)[-1] == step, "the last step done is saved"
    said = f"stopped by {case.says} after step {step} of {NUM_STEPS}, saved in runs/{launcher}/"
    assert run.text().count(said) == 1, run.text()
    assert run.text().count(f"msam-scale: {case.says}: stopping") == 1, run.text()
    assert launcher == "torchrun" or "Traceback" not in run.text()

    on_ranks(2, train, config, str(Path.cwd()), [*words, f"run.name={launcher}"])
    assert figures(launcher, *FIGURES) == figures(f"whole-{launcher}", *FIGURES)
    assert metric_lines(launcher)[-1]["step"] == NUM_STEPS
    expected = weights(f"whole-{launcher}")
    assert all(torch.equal(expected[name], t) for name, t in weights(launcher).items())


@pytest.mark.parametrize("launcher", CASES)
def test_a_mistake_that_only_ranks_can_find_is_said_once(
    launcher: str, config: str, start: Start
) -> None:
    run = start(launcher, config, "model.name=wrn-11-1", "run.name=mistake")
    assert run.code() == CASES[launcher].mistake, run.text()
    run.wait_until_nothing_is_left()
    # torchrun repeats a rank's line in its own summary.
    num_times = 2 if launcher == "torchrun" else 1
    assert run.text().count("command line: model.name: ") == num_times, run.text()
    assert not Path("runs/mistake").exists()
