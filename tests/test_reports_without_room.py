"""Reports on a disk that is full: the run goes on, and says what is missing."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from msam_scale.monitoring.board import Board
from msam_scale.monitoring.metric_lines import MetricLines


@contextmanager
def _files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Longer files are refused by the kernel, as they are where there is no room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _line(step: int) -> dict[str, float | int | str]:
    return {"step": step, "epoch": 0.5, "split": "train", "loss": 1.0 / step}


def test_lines_that_found_no_room_are_written_later(tmp_path: Path) -> None:
    path, warnings = tmp_path / "metrics.jsonl", list[str]()
    lines = MetricLines(path, first_step=0, warn=warnings.append)
    lines.write(_line(1))
    with _files_of_at_most(path.stat().st_size + 10):
        lines.write(_line(2))
        lines.write(_line(3))
    assert len(warnings) == 2
    assert "File too large; training goes on" in warnings[0]
    lines.write(_line(4))
    lines.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [_line(step) for step in (1, 2, 3, 4)]
    assert len(warnings) == 2


def test_lines_that_never_find_room_are_missed(tmp_path: Path) -> None:
    warnings: list[str] = []
    lines = MetricLines(tmp_path / "metrics.jsonl", first_step=0, warn=warnings.append)
    with _files_of_at_most(10):
        lines.write(_line(1))
        lines.close()
    assert "the last lines are missing" in warnings[-1]


# TensorBoard's own thread ends with the error that it hands on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_goes_on_with_a_new_file(tmp_path: Path) -> None:
    warnings: list[str] = []
    threads = set(threading.enumerate())
    board = Board(tmp_path, first_step=0, warn=warnings.append)
    board.write({"loss/train": 1.0}, step=1)
    (events,) = tmp_path.iterdir()
    with _files_of_at_most(events.stat().st_size + 10):
        for step in (2, 3):
            board.write({"loss/train": 1.0 / step}, step=step)
    assert any("figures up to step" in warning for warning in warnings)
    board.write({"loss/train": 0.25}, step=4)
    board.close()
    for thread in set(threading.enumerate()) - threads:
        thread.join(60.0)  # or its error may be laid at another test's door
    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    steps = [event.step for event in shown.Scalars("loss/train")]
    assert (steps[0], steps[-1]) == (1, 4)
