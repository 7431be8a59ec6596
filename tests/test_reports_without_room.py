"""Reports in want of room, of a whole file or of a clock: the run goes on, and says so."""

from __future__ import annotations

import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from msam_scale.monitoring.board import Board
from msam_scale.monitoring.metric_lines import MetricLines, read_metric_lines


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
    assert warnings == [
        f"warning: {path}: File too large; training goes on, and what is missing is written when "
        "there is room"
    ]
    lines.write(_line(4))
    lines.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [_line(step) for step in (1, 2, 3, 4)]


def test_lines_that_never_find_room_are_missed(tmp_path: Path) -> None:
    warnings: list[str] = []
    lines = MetricLines(tmp_path / "metrics.jsonl", first_step=0, warn=warnings.append)
    with _files_of_at_most(10):
        lines.write(_line(1))
        lines.close()
    assert "the last lines are missing" in warnings[-1]


def test_tensorboard_is_silent_after_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []
    threads = set(threading.enumerate())
    board = Board(tmp_path, first_step=0, warn=warnings.append)
    board.write({"loss/train": 1.0}, step=1)
    (events,) = tmp_path.iterdir()
    with _files_of_at_most(events.stat().st_size + 10):
        for step in (2, 3, 4):
            board.write({"loss/train": 1.0 / step}, step=step)
        board.close()
        for thread in set(threading.enumerate()) - threads:
            thread.join(60.0)  # or its error may be laid at another test's door
    (warning,) = warnings
    assert warning.startswith(f"warning: {tmp_path}: no figures from step ")
    assert "Traceback" not in capfd.readouterr().err
    assert _shown(tmp_path) == [1]


def test_a_clock_that_was_set_back_hides_no_step(tmp_path: Path) -> None:
    for start in (0, 3, 6):
        board = Board(tmp_path, first_step=start, warn=print)
        for step in range(start + 1, start + 4):
            board.write({"loss/train": 1.0 / step}, step=step)
        board.close()
        for events in tmp_path.iterdir():  # as if it had been written in an hour
            stamp, rest = events.name.removeprefix("events.out.tfevents.").split(".", 1)
            events.rename(events.with_name(f"events.out.tfevents.{int(stamp) + 3600}.{rest}"))
            later = time.time() + 3600
            os.utime(tmp_path / f"events.out.tfevents.{int(stamp) + 3600}.{rest}", (later, later))
    assert _shown(tmp_path) == [*range(1, 10)]


def _shown(folder: Path) -> list[int]:
    """The steps that TensorBoard shows; no event is earlier than the one before."""
    shown = EventAccumulator(str(folder))
    shown.Reload()
    events = shown.Scalars("loss/train")
    times = [event.wall_time for event in events]
    assert times == sorted(times)
    return [event.step for event in events]


_LINE = json.dumps({"step": 1, "epoch": 0.5, "split": "train", "loss": 1.0})


@pytest.mark.parametrize(
    ("damaged", "fault"),
    [
        ("\xff\xfe", "line 2 is damaged: 'utf-8' codec can't decode"),
        ("[" * 100_000, "line 2 is damaged: maximum recursion depth exceeded"),
        ("[1]", "expected an object"),
        (_LINE.replace('"step": 1', '"step": "1"'), "expected a step, a whole number"),
        (_LINE.replace("0.5", "[]"), "expected a number as epoch"),
        (_LINE.replace("1.0", "[]"), "expected a number as 'loss'"),
        (_LINE.replace("1.0", "1" + "0" * 400), "too large"),
        ('"' + "x" * (1 << 20) + '"', "it is longer than 1048576 bytes"),
    ],
)
def test_damaged_lines_are_set_aside(damaged: str, fault: str, tmp_path: Path) -> None:
    path, warnings = tmp_path / "metrics.jsonl", list[str]()
    content = f"{_LINE}\n{damaged}\n".encode("latin-1")
    path.write_bytes(content)
    lines = MetricLines(path, first_step=1, warn=warnings.append)
    lines.write(_line(2))
    lines.close()
    (warning,) = warnings
    assert fault in warning
    (aside,) = tmp_path.glob("damaged-*-metrics.jsonl")
    assert warning.endswith(f"it is kept as {aside.name}, and a new one begins")
    assert aside.read_bytes() == content
    assert read_metric_lines(path) == [_line(2)]
