"""What every case of the fuzzing is held to, and how values, documents and bytes are damaged."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from memory_bound import bounded_pages

from launch.cli import main

Case = Callable[[Random], None]
MOST_SECONDS = 30
MOST_BYTES = 512 << 20
"""Of memory that a case may take besides what the process has."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Of Python's own audit events, those that change a file system, and which of their arguments are
# paths, each with the one that is the descriptor of its folder, if any.
_EVENTS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.link": ((0, 2), (1, 3)),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
}
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn"}
_watching: list[tuple[Path, list[str]]] = []
_audits: list[bool] = []  # whether Python calls `_audit`, which it does for ever


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    folder, seen = _watching[-1]
    if event in _PROGRAMS:
        seen.append(f"{event} {arguments}")
        return
    paths = [
        (arguments[at], None if of is None else arguments[of]) for at, of in _EVENTS.get(event, ())
    ]
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        paths = [(arguments[0], None)]
    for path, descriptor in paths:
        if isinstance(path, str | bytes | os.PathLike):
            base = f"/proc/self/fd/{descriptor}" if (descriptor or -1) >= 0 else "."
            place = os.path.abspath(os.path.join(os.path.realpath(base), os.fsdecode(path)))  # noqa
            if place != os.devnull and not f"{place}{os.sep}".startswith(f"{folder}{os.sep}"):
                seen.append(f"{event} {place}")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, a case takes bounded time and memory, writes into its folder and starts nothing.

    Raises:
        AssertionError: it does otherwise.
    """
    if not _audits:
        sys.addaudithook(_audit)
        _audits.append(True)

    def end(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"more than {MOST_SECONDS} s")

    seen: list[str] = []
    before = signal.signal(signal.SIGALRM, end), tempfile.tempdir, sys.dont_write_bytecode
    tempfile.tempdir, sys.dont_write_bytecode = str(folder), True
    place = Path.cwd()
    os.chdir(folder)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        with bounded_pages(most_bytes=MOST_BYTES), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _watching.append((folder, seen))
            try:
                yield
            finally:
                _watching.pop()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.chdir(place)
        handler, tempfile.tempdir, sys.dont_write_bytecode = before
        signal.signal(signal.SIGALRM, handler)
    assert not seen, f"written outside of the case's folder, or started: {seen[:5]}"


def call(*words: str) -> str:
    """Runs a command that has to succeed, or to end with one clear message.

    Returns:
        What it said on stderr.
    """
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(list(words))
    said = error.getvalue()
    assert "Traceback" not in said, said[-3000:]
    assert code in (0, 2), f"exit code {code}: {said[-1000:]}"
    for line in [*out.getvalue().splitlines(), *said.splitlines()]:
        assert line.replace("\t", " ").isprintable(), repr(line)
    return said


STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, -(2**63), 10**30),
    *(0.0, -0.5, 0.5, 1e308, 1e-308, float("nan"), float("inf")),
    *("", "x", "0", "1e-3", "true", "nan", "ü" * 300, "x" * 5000, "{0..9999999999}"),
    *("a\0b", "\x1b[2J\n", "\ud800", "../../x", "/dev/zero", "/proc/self/mem", "~nobody/x"),
    *("pipe:touch victim {name}", "file:///etc", "s3://x/y", "http://[::1"),
    *([], [None], [[[]]], [1, "x", {}], {}, {"": None}, {"x": {"y": [1]}}, {"\ud800": 1}),
]


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a document and key in it."""
    waiting = [document]
    while waiting:
        inner = waiting.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        for key in keys:
            yield inner, key
            if isinstance(inner[key], dict | list):
                waiting.append(inner[key])


def damage(document: Any, random: Random) -> None:
    """Changes one place of a JSON document: another value, none, another name, twice."""
    container, key = random.choice(list(places(document)))
    value = container[key]
    kind = random.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    elif kind == 2 and type(value) in (int, float):
        container[key] = random.choice([-value, value + 1, value * 10**9, str(value), [value]])
    elif kind == 3 and isinstance(value, list):
        container[key] = value * 2
    else:
        container[key] = random.choice(STRANGE)


def damage_bytes(content: bytes, random: Random) -> bytes:
    """Flips, cuts out, doubles or inserts some bytes, at a place or two."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 3)):
        place, length = random.randrange(len(changed) + 1), random.choice([1, 1, 2, 8, 100])
        kind = random.randrange(5)
        if kind == 0:
            del changed[place : place + length]
        elif kind == 1:
            changed[place:place] = changed[place : place + length]
        elif kind == 2:
            changed[place:place] = random.randbytes(length)
        elif kind == 3:
            del changed[place:]
        else:
            changed[place : place + length] = random.randbytes(len(changed[place : place + length]))
    return bytes(changed)


def json_bytes(document: Any) -> bytes:
    """The document, half surrogate pairs and numbers that are none included."""
    return json.dumps(document).encode()


def run_cases(case: Case, *, seeds: range) -> float:
    """Runs a case with each seed.

    Returns:
        Cases a second.

    Raises:
        AssertionError: names the seed of the first that is not as it has to be.
    """
    start = time.monotonic()
    for seed in seeds:
        try:
            case(Random(seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return len(seeds) / (time.monotonic() - start)
