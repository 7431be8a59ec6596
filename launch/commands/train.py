"""`msam-scale train`: train on this machine."""

from __future__ import annotations

import argparse
import logging
import sys
import uuid

from launch.arguments import add_config_arguments, count
from launch.exit_codes import FAILURE, SIGNALLED, SUCCESS

NAME = "train"
HELP = "train from a config, in this process or on several ranks of this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the config, its overrides and the number of ranks."""
    add_config_arguments(parser)
    parser.add_argument(
        "--nproc",
        type=count,
        metavar="N",
        help="ranks to start on this machine; by default training runs in this process",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains; returns the exit code of the rank that failed first, if one did."""
    if arguments.nproc is None:
        from launch.train import train_rank

        return train_rank(arguments.config, overrides=arguments.overrides)
    # Most mistakes are found here in a moment, before processes start.
    from msam_scale.config import load_config

    load_config(
        arguments.config,
        overrides=arguments.overrides,
        world_size=arguments.nproc,
        for_training=True,
    )
    return _start_ranks(arguments.nproc, [arguments.config, *arguments.overrides])


def _start_ranks(num_ranks: int, words: list[str]) -> int:
    """Starts the ranks as `torchrun --standalone` does, without its report of a failure."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "launch.train", *words)
    except SignalException as signal:
        name = signal.sigval.name
        print(f"msam-scale: ended by {name}; ranks are stopped", file=sys.stderr)
        return SIGNALLED + signal.sigval
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else FAILURE
    return SUCCESS
