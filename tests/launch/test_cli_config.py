"""`msam-scale config`: what it prints, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cli
from launch.cli import main
from msam_scale.config import load_config

YAML = "batch: {size: 64}\nobjective: {micro_batches: 8}\n"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return str(path)


def test_check_says_ok_and_the_layout(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", config, "--nproc", "4", "batch.size=128"]) == 0
    assert capsys.readouterr().out == (
        f"{config}: ok: msam, B = 128, m = 8, replicated, float32, W = 4: "
        "4 groups of 1 rank, each with 2 micro-batches of 16 samples\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        "CONFIG --nproc 4 batch.size=63 monitor.every=0",
        "CONFIG batch.size=63 --nproc 4 monitor.every=0",
        "CONFIG batch.size=63 monitor.every=0 --nproc 4",
        "--nproc 4 CONFIG batch.size=63 monitor.every=0",
    ],
)
def test_options_may_stand_anywhere(
    words: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["config", "check", *(config if word == "CONFIG" else word for word in words.split())])
        == 2
    )
    error = capsys.readouterr().err
    assert "command line: batch.size: a mini-batch of 63" in error
    assert "command line: monitor.every: 0 is below 1" in error


def test_a_layout_that_does_not_work_is_refused(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check", config]) == 0
    assert main(["config", "check", config, "--nproc", "7"]) == 2
    assert "objective.micro_batches: a mini-batch of 64" in capsys.readouterr().err


def test_show_prints_what_loads_to_the_same(
    config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["config", "show", config, "optimizer.lr=1e-3"]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    assert load_config(shown) == load_config(config, overrides=["optimizer.lr=1e-3"])


def test_schema_is_json_and_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert "batch" in json.loads(capsys.readouterr().out)["required"]
    assert main(["config", "table"]) == 0
    assert capsys.readouterr().out.startswith("| section | key | type |")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["config"],
        ["config", "check"],
        ["config", "schema", "x=1"],
        ["config", "check", "run.yaml", "--nproc", "0"],
        ["config", "check", "run.yaml", "--nprocs", "2"],
        ["config", "check", "run.yaml", "--np", "2"],
        ["config", "check", "missing.yaml"],
    ],
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "msam-scale" in error
    assert "Traceback" not in error


def test_help_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "config" in capsys.readouterr().out


class _Failing:
    """A command that ends with an exception."""

    NAME = "fail"
    HELP = "fail"

    def __init__(self, exception: BaseException) -> None:
        self._exception = exception

    def add_arguments(self, parser: object) -> None:
        """Has none."""

    def run(self, arguments: object) -> int:
        raise self._exception


@pytest.mark.parametrize(
    ("exception", "code", "traceback"),
    [(KeyboardInterrupt(), 130, False), (RuntimeError("ours"), 1, True)],
)
def test_other_ends_of_a_command(
    exception: BaseException,
    code: int,
    traceback: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (_Failing(exception),))
    assert main(["fail"]) == code
    assert ("Traceback" in capsys.readouterr().err) == traceback


def test_the_process_exits_with_2_and_one_line(config: str) -> None:
    command = [sys.executable, "-m", "launch.cli", "config", "check", config, "rho=1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        "msam-scale: command line: rho: is not a key; did you mean objective.rho?\n"
    )
    assert ended.stdout == ""
