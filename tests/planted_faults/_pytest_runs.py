"""Runs of pytest over a copy of the tree, in processes that have the libraries already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.planted_faults import ROOT

# What pytest's exit codes mean here; with the others it has not tested anything. Several processes
# are stopped by the first failure.
NOTICED, PASSED, STOPPED = 1, 0, 2
# Importing the libraries takes longer than most tests, so each run is a fork of one process that
# has them.
_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(["torch", "timm", "transformers", "hypothesis", "pytest"])


def run_pytest(copy: Path, tests: Sequence[str], *words: str, seconds: float) -> tuple[int, str]:
    """Pytest's exit code and what it said; a run that hangs has noticed something."""
    log = copy.parent / "pytest.log"
    # One folder for each copy: pytest clears away the folders of earlier sessions when it ends.
    words = ("-x", "-p", "no:cacheprovider", f"--basetemp={copy.parent / 'tmp'}", *words, *tests)
    # Some of the libraries are plugins of pytest, which would have rewritten their assertions.
    words = ("-W", "ignore::pytest.PytestAssertRewriteWarning", *words)
    process = _WARM.Process(target=_run, args=(copy, words, log))
    process.start()
    process.join(seconds)
    code = process.exitcode
    if code is None:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        code = NOTICED
    return code, log.read_text("utf-8", errors="replace")


def _run(copy: Path, words: Sequence[str], log: Path) -> None:
    """Runs the copy's tests in this process, which has the libraries but none of the product."""
    os.setsid()
    # The pools of ranks get a server of their own, which has the copy's product.
    forkserver._forkserver.__init__()  # type: ignore[misc]
    with log.open("wb") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    os.chdir(copy)
    # Before an installed copy of the product, also in the processes that tests start.
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
    sys.exit(int(pytest.main(list(words))))
