"""`msam-scale data`: make data sets ready for training."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "data"
HELP = "prepare data sets as WebDataset shards with an index"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `prepare`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    prepare = actions.add_parser("prepare", help="write a data set as shards with an index")
    prepare.add_argument("name", metavar="NAME", help="which data set: digits")
    prepare.add_argument(
        "--out", metavar="DIR", required=True, help="folder to make, with train/ and val/"
    )
    prepare.add_argument(
        "--seed", type=int, default=0, help="of the split and of the order in the shards (0)"
    )
    prepare.set_defaults(action=_prepare)


def run(arguments: argparse.Namespace) -> int:
    """Carries the action out; prints to stdout."""
    arguments.action(arguments)
    return 0


def _prepare(arguments: argparse.Namespace) -> None:
    from data_pipelines import prepare

    prepared = prepare(arguments.name, out=Path(arguments.out), seed=arguments.seed)
    counts = ", ".join(f"{count} {split}" for split, count in prepared.num_samples.items())
    already = " is there already" if prepared.already_there else ""
    print(f"{arguments.out}{already}: {counts} samples")
