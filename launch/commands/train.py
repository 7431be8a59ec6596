"""`msam-scale train`: train on this machine."""

from __future__ import annotations

import argparse

from launch.arguments import add_config_arguments, add_dry_run, count

NAME = "train"
HELP = "train from a config, in this process or on several ranks of this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the config, its overrides, the number of ranks and whether to train."""
    add_config_arguments(parser)
    add_dry_run(parser)
    parser.add_argument(
        "--nproc",
        type=count,
        metavar="N",
        help="ranks to start on this machine; by default training runs in this process",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains; returns the exit code of the rank that failed or was stopped first, if one was."""
    if arguments.nproc is None:
        from launch.train import train_rank

        return train_rank(
            arguments.config, overrides=arguments.overrides, dry_run=arguments.dry_run
        )
    # Most mistakes are found here in a moment, before processes start.
    from launch.local_ranks import start_ranks
    from msam_scale.config import load_config

    config = load_config(
        arguments.config,
        overrides=arguments.overrides,
        world_size=arguments.nproc,
        for_training=True,
    )
    words = [arguments.config, *arguments.overrides, *["--dry-run"] * arguments.dry_run]
    return start_ranks(arguments.nproc, words, grace=config.faults.grace)
