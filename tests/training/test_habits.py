"""What people do with runs: pipes, terminals, corrected configs, longer runs, folders of theirs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.cli import main
from launch.local_ranks import start_ranks
from msam_scale.supervision import StopRequest


def checkpoints(run: str) -> list[str]:
    return sorted(path.name for path in Path("runs", run, "checkpoints").glob("step-*"))


@pytest.fixture
def pipe_without_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's own stdout and stderr lead into a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, stream)
            monkeypatch.setattr(sys, f"__{name}__", stream)
        yield


@pytest.mark.usefixtures("pipe_without_reader")
def test_a_run_whose_output_nobody_reads_is_trained_and_saved(config: str) -> None:
    assert main(["train", config, "training.steps=4", "training.eval_every=4"]) == 0
    assert checkpoints("small") == ["step-00000004"]


@pytest.mark.usefixtures("pipe_without_reader")
@pytest.mark.parametrize(("words", "code"), [("config schema", 0), ("config check nowhere", 2)])
def test_no_command_minds_that_nobody_reads_it(words: str, code: int) -> None:
    assert main(words.split()) == code


def test_a_full_disk_under_the_output_loses_lines_only(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        monkeypatch.setattr(sys, "__stderr__", full)
        assert main(["train", config, "training.steps=2", "data.val=null",
                     "training.eval_every=null"]) == 0  # fmt: skip
    assert checkpoints("small") == ["step-00000002"]


def test_a_terminal_that_closes_is_a_request_to_stop() -> None:
    stop = StopRequest(grace=60, code=75)
    stop.listen()
    try:
        stop.finish()  # a request before the ranks have joined would end the process
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        stop.close()


def test_nohup_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest(grace=60, code=75)
    try:
        stop.listen()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        stop.close()
        signal.signal(signal.SIGHUP, before)


def test_a_program_of_the_ranks_name_in_the_working_folder_is_not_theirs(
    config: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither it nor modules of torch's names: ranks import what `msam-scale` itself imports."""
    for name in ("launch", "torch", "msam_scale"):
        Path(f"{name}.py").write_text("raise SystemExit(0)\n")
    assert start_ranks(1, [config, "model.name=wrn-11-1"], grace=5) == 2
    assert "model.name" in capfd.readouterr().err
