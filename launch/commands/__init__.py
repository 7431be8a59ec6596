"""The commands of `msam-scale`: a module each, with `NAME`, `HELP`, `add_arguments` and `run`.

A command imports what is slow to import (torch above all) inside `run`.
"""

from __future__ import annotations

import argparse
from typing import Protocol

from launch.commands import (
    checkpoint,
    config,
    data,
    export,
    landscape,
    report,
    reproduce,
    sharpness,
    train,
)


class Command(Protocol):
    """What a command's module has."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the command's arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Carries the command out and returns the exit code."""


COMMANDS: tuple[Command, ...] = (
    train,
    data,
    report,
    sharpness,
    landscape,
    reproduce,
    checkpoint,
    export,
    config,
)
