"""Every launcher starts the same training, and every strategy follows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port
from rank_pool import OnRanks
from runs_on_ranks import train

_ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent
_LAUNCHERS: dict[str, list[str]] = {
    "msam-scale": [sys.executable, "-m", "launch.cli", "train", "--nproc", "2"],
    "torchrun": [
        str(_BIN / "torchrun"),
        "--master-port=PORT",
        "--nproc-per-node=2",
        "launch/train.py",
    ],
    "deepspeed": [
        str(_BIN / "deepspeed"),
        *("--master_port", "PORT"),
        *("--log_level", "error", "--num_accelerators", "2", "launch/train.py"),
    ],
}
# The whole matrix takes minutes; the README's commands have more of it. `ranks` are processes that
# no launcher has started. Where ranks work on a micro-batch together, the validation set gives one
# of the two a block more than the other.
_STARTS = [
    *(("ranks", strategy) for strategy in ("fsdp", "zero1", "zero2", "zero3")),
    ("msam-scale", "replicated"),
    ("torchrun", "fsdp"),
    ("deepspeed", "zero3"),
]
_FIGURES = ("loss", "lr", "grad_norm", "ascent_norm", "accuracy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """Where the digits and the runs are."""
    folder = tmp_path_factory.mktemp("launchers")
    (folder / "digits").symlink_to(digits)
    return folder


def _figures(launcher: str, strategy: str, folder: Path, on_ranks: OnRanks) -> list[list[float]]:
    """The metrics of a few steps of the quickstart, made once."""
    name = f"{launcher}-{strategy}"
    lines = folder / "runs" / name / "metrics.jsonl"
    if not lines.is_file():
        overrides = [
            f"run.name={name}",
            f"run.dir={folder / 'runs'}",
            f"data.train={folder / 'digits/train'}",
            f"data.val={folder / 'digits/val'}",
            f"sharding.strategy={strategy}",
            *("training.epochs=null", "training.steps=4", "monitor.every=1"),
            *("schedule.warmup=0.25", "optimizer.lr=0.01"),
            *("monitor.progress=false", "monitor.tensorboard=false"),
        ]
        if launcher == "ranks":
            on_ranks(2, train, "configs/quickstart.yaml", str(_ROOT), overrides)
        else:
            launch = [word.replace("PORT", str(free_port())) for word in _LAUNCHERS[launcher]]
            _launch([*launch, "configs/quickstart.yaml", *overrides])
    metrics = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(metrics) == 5
    return [[line[name] for name in _FIGURES if name in line] for line in metrics]


def _launch(command: list[str]) -> None:
    environment = os.environ | {"PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command,
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("launcher", "strategy"), _STARTS)
def test_every_launcher_and_strategy_gives_the_same_metrics(
    launcher: str, strategy: str, folder: Path, on_ranks: OnRanks
) -> None:
    figures = _figures(launcher, strategy, folder, on_ranks)
    assert figures == _figures("ranks", strategy, folder, on_ranks)
    expected = _figures("ranks", "replicated", folder, on_ranks)
    for line, right in zip(figures, expected, strict=True):
        # Batch normalization over four samples multiplies what float32 rounds.
        assert line == pytest.approx(right, rel=1e-5)
