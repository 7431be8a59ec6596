"""Arguments that several commands share."""

from __future__ import annotations

import argparse


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the config file as `config` and its overrides as `overrides`."""
    parser.add_argument("config", metavar="CONFIG", help="config file: .yaml, .yml or .json")
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="setting that goes before the file's, such as optimizer.lr=0.1",
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Adds `dry_run`."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="do all but the first step (model, engine, data, first mini-batch); write nothing",
    )


def add_run_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds folders of runs as `runs`, or one as `folder`, and the consent as `allow_code`."""
    if several:
        parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    else:
        parser.add_argument("folder", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="run the commands (pipe:…) that the run's config names; look at it first",
    )


def count(text: str) -> int:
    """An argument that counts something: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
