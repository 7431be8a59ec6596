"""Every launcher starts the same training, and every strategy follows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("fixed_ports")
_ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent
_LAUNCHERS: dict[str, list[str]] = {
    "msam-scale": [sys.executable, "-m", "launch.cli", "train", "--nproc", "2"],
    "torchrun": [str(_BIN / "torchrun"), "--nproc-per-node", "2", "launch/train.py"],
    "deepspeed": [
        str(_BIN / "deepspeed"),
        *("--log_level", "error", "--num_accelerators", "2", "launch/train.py"),
    ],
}
# The whole matrix takes minutes; the README's commands have more of it. Where ranks work on a
# micro-batch together, the validation set gives one of the two a block more than the other.
_STARTS = [
    *(("msam-scale", strategy) for strategy in ("replicated", "fsdp", "zero1", "zero2", "zero3")),
    ("torchrun", "fsdp"),
    ("deepspeed", "zero3"),
]
_FIGURES = ("loss", "lr", "grad_norm", "ascent_norm", "accuracy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the digits and the runs are."""
    folder = tmp_path_factory.mktemp("launchers")
    command = ["data", "prepare", "digits", "--out", str(folder / "digits")]
    subprocess.run([sys.executable, "-m", "launch.cli", *command], cwd=_ROOT, check=True)
    return folder


def _figures(launcher: str, strategy: str, folder: Path) -> list[list[float]]:
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
        command = [*_LAUNCHERS[launcher], "configs/quickstart.yaml", *overrides]
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
    metrics = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(metrics) == 5
    return [[line[name] for name in _FIGURES if name in line] for line in metrics]


@pytest.mark.parametrize(("launcher", "strategy"), _STARTS)
def test_every_launcher_and_strategy_gives_the_same_metrics(
    launcher: str, strategy: str, folder: Path
) -> None:
    figures = _figures(launcher, strategy, folder)
    assert figures == _figures("msam-scale", strategy, folder)
    expected = _figures("msam-scale", "replicated", folder)
    for line, right in zip(figures, expected, strict=True):
        # Batch normalization over four samples multiplies what float32 rounds.
        assert line == pytest.approx(right, rel=1e-5)
