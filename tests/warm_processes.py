"""Processes that are there in a moment: forked from one that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# As for the ranks of the pools: the process that they are forked from is one for all.
_PRELOADED = ["torch", "timm", "msam_scale.initialization"]
_SECONDS = 60.0


def start_warm(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Starts a process that calls a module's function, in the working folder of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process: BaseProcess = context.Process(target=function, args=arguments)
    process.start()
    return process


def ended(function: Callable[..., None], *arguments: Any) -> int | None:
    """The exit code of a process that calls the function; None where it does not end."""
    process = start_warm(function, *arguments)
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def say_into(log: str | Path) -> None:
    """In such a process: what it says goes to the end of a file."""
    with Path(log).open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
