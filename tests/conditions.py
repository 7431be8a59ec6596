"""`make test`'s tests where things are not as usual: `python -m tests.conditions`.

Twice, each time in a path with a space, beside a program that takes a core, with other programs on
the default ports of launchers and of TensorBoard: once with the least kernels, once with those that
the libraries choose, as another user where this one is root.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.tree import copy_of_the_tree

_ROOT = Path(__file__).parents[1]
_PORTS = (29500, 6006)
_NOBODY = 65534
_LEAST_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


def main() -> int:
    """Returns 0 if the tests have passed both times."""
    other = _another_user()
    cases: list[tuple[str, dict[str, str], dict[str, Any]]] = [
        ("the least kernels", _LEAST_KERNELS, {}),
        (f"default kernels, as user {other.get('user', os.getuid())}", {}, other),
    ]
    failed = [what for what, settings, user in cases if not _passes(what, settings, user)]
    print(f"failed: {failed}" if failed else "passed under all conditions")
    return 1 if failed else 0


def _passes(what: str, settings: dict[str, str], user: dict[str, Any]) -> bool:
    print(f"== {what}", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="a path ")))
        copy = folder / "checkout"
        copy_of_the_tree(_ROOT, copy)
        (folder / "tmp").mkdir()
        if user:
            for path in (folder, *folder.rglob("*")):
                shutil.chown(path, user["user"], user["group"])
        stack.enter_context(_a_busy_core())
        stack.enter_context(_taken_ports())
        environment = {
            **{key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
            **settings,
            "PYTHONPATH": str(copy),
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "pytest"], cwd=copy, env=environment, check=False, **user
        )
    return done.returncode == 0


def _another_user() -> dict[str, Any]:
    """Arguments of `subprocess` for a user without rights; none where this one has none either."""
    if os.getuid() != 0:
        return {}
    user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", ""], cwd="/", check=True, **user)
    except (OSError, subprocess.SubprocessError):
        print(f"skipped: another user cannot start {sys.executable}")
        return {}
    return user


@contextmanager
def _a_busy_core() -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _spin() -> None:
    while os.getppid() != 1:
        sum(range(1_000_000))


@contextmanager
def _taken_ports() -> Iterator[None]:
    with ExitStack() as stack:
        for port in _PORTS:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue  # another program is there already
            listener.listen()
        yield


if __name__ == "__main__":
    sys.exit(main())
