"""One rank of a training run: what `deepspeed`, `torchrun` and `msam-scale train` start.

deepspeed --num_accelerators 2 launch/train.py CONFIG [KEY=VALUE …]
torchrun --nproc-per-node 2 launch/train.py CONFIG [KEY=VALUE …]
"""

# ruff: noqa: E402
from __future__ import annotations

from msam_scale.supervision.launcher import LauncherWatch

# Before the other imports, in whose seconds a launcher may be killed.
_LAUNCHER = LauncherWatch() if __name__ == "__main__" else None

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch

from data_pipelines.errors import UserError
from data_pipelines.loading.worker_pool import killed_worker
from launch.arguments import add_config_arguments, add_dry_run
from launch.exit_codes import FAILURE, INTERRUPTED, PREEMPTED, SUCCESS, USER_ERROR
from launch.output import calm_output, told
from launch.summary import closing_words, stopping_words
from msam_scale.config import load_config
from msam_scale.config.sections.faults import FaultsSection
from msam_scale.errors import NonFiniteError
from msam_scale.ranks import Ranks, join, leave
from msam_scale.supervision.stop_request import StopRequest
from msam_scale.supervision.supervision import Supervision
from msam_scale.training import PreparedRun, prepare_run, run_training

# What rank 0 needs to say what is wrong, and the launcher to end this rank for it.
_SECONDS_FOR_RANK_0 = 3.0


def main(argv: Sequence[str] | None = None) -> int:
    """Parses a rank's command line and trains.

    Args:
        argv: the arguments after the script's name; by default those of this process.

    Returns:
        The exit code: 0 for success, 75 for a run that was asked to stop and is saved, 2 for what
        the user can mend, 1 for everything else.
    """
    parser = argparse.ArgumentParser(prog="train.py", description=__doc__, allow_abbrev=False)
    add_config_arguments(parser)
    add_dry_run(parser)
    # The deepspeed launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)
    return train_rank(arguments.config, overrides=arguments.overrides, dry_run=arguments.dry_run)


def train_rank(config: str, *, overrides: Sequence[str], dry_run: bool = False) -> int:
    """Trains as the rank that the environment describes; says what went wrong, once.

    Args:
        config: a file.
        overrides: settings that go before the file's.
        dry_run: do all but the first step, and write nothing.

    Returns:
        The exit code.
    """
    faults = _faults(config, overrides=overrides)
    supervision = Supervision(faults, code=PREEMPTED, launcher=_LAUNCHER)
    try:
        supervision.start()
        return _train_supervised(
            config, overrides=overrides, supervision=supervision, dry_run=dry_run
        )
    finally:
        supervision.close()


def _train_supervised(
    config: str, *, overrides: Sequence[str], supervision: Supervision, dry_run: bool
) -> int:
    ranks = None
    try:
        _share_cores()
        ranks = join(timeout=supervision.timeout)
        supervision.join(ranks)
        supervision.beat("starting")
        prepared = _prepare_on_all(config, overrides=overrides, ranks=ranks)
        supervision.beat("starting")
        outcome = run_training(prepared, ranks=ranks, supervision=supervision, dry_run=dry_run)
        supervision.finish()
    except UserError as error:
        return _fail(ranks, str(told(error)), code=USER_ERROR, stop=supervision.stop)
    except NonFiniteError as error:
        return _fail(ranks, str(error), code=FAILURE, stop=supervision.stop)
    except KeyboardInterrupt:
        return _fail(ranks, "interrupted", code=INTERRUPTED, stop=supervision.stop)
    except Exception as error:
        if (killed := killed_worker(error)) is not None:
            return _fail(ranks, str(killed), code=USER_ERROR, stop=supervision.stop)
        # Each rank has another view of it, so each says its own at once.
        if (message := supervision.lost_rank(error)) is not None:
            return _fail(ranks, message, code=FAILURE, stop=supervision.stop, waits=False)
        if (message := told(error)) is not None:
            return _fail(ranks, message, code=USER_ERROR, stop=supervision.stop)
        return _fail(ranks, traceback.format_exc(), code=FAILURE, stop=supervision.stop)
    if ranks.is_first:
        if dry_run and outcome.stopped_by is None:
            words = f"dry run: all but the first step is done; {outcome.folder} is as it was"
        elif outcome.stopped_by is None:
            words = closing_words(
                outcome,
                config=prepared.config,
                source=config,
                overrides=overrides,
                num_ranks=ranks.size,
            )
        else:
            words = stopping_words(outcome, config=prepared.config)
        print(words, flush=True)
    supervision.leave()
    if not supervision.stop.is_orphan:  # whose group may wait for a store that is gone
        leave()
    return SUCCESS if outcome.stopped_by is None else PREEMPTED


def _faults(config: str, *, overrides: Sequence[str]) -> FaultsSection:
    """The config's section, which is needed before the ranks join; its mistakes are said later."""
    try:
        return load_config(config, overrides=overrides).faults
    except UserError:
        return FaultsSection()


def _share_cores() -> None:
    """Gives each rank of this machine its part of the cores.

    torch starts a thread a core in each process; ranks that then fight for the cores are many times
    slower than ranks with fewer threads. OMP_NUM_THREADS goes before this.
    """
    # torchrun's name and the deepspeed launcher's.
    local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
    if "OMP_NUM_THREADS" not in os.environ and local.isdigit():
        torch.set_num_threads(max(1, torch.get_num_threads() // max(1, int(local))))


def _prepare_on_all(config: str, *, overrides: Sequence[str], ranks: Ranks) -> PreparedRun:
    """Prepares on every rank; what is wrong on one of them stops all before anything starts."""
    prepared, message, start = None, None, None
    try:
        prepared = prepare_run(
            config, overrides=overrides, world_size=ranks.size, tries_model=ranks.is_first
        )
        start = prepared.folder.weights_from, prepared.data.train.index.fingerprint
    except UserError as error:
        message = str(error)
    found = ranks.gathered((message, start))
    for rank, (message, start) in enumerate(found):
        if message is not None:
            raise UserError(message if rank == 0 else f"rank {rank}: {message}")
        if start != found[0][1]:
            raise UserError(
                f"rank {rank} sees another checkpoint or other data than rank 0: {start} instead "
                f"of {found[0][1]}; run.dir and data.train must be on a file system that all share"
            )
    assert prepared is not None
    return prepared


def _fail(
    ranks: Ranks | None, message: str, *, code: int, stop: StopRequest, waits: bool = True
) -> int:
    """Prints on stderr. Most errors are the same on all ranks: rank 0 is to say them."""
    prefix = "msam-scale"
    if ranks is not None and not ranks.is_first:
        if waits:
            stop.fail(code)
            time.sleep(_SECONDS_FOR_RANK_0)
        prefix = f"msam-scale, rank {ranks.rank}"
    print(f"{prefix}: {message}", file=sys.stderr, flush=True)
    _tell_launcher(f"{prefix}: {message}")
    return code


def _tell_launcher(message: str) -> None:
    """Writes what torchrun's summary of failed ranks shows, as `@record` does for an exception.

    Ours do not reach it: they become a line and an exit code.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
    with suppress(OSError):
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))


def _end(code: int) -> NoReturn:
    """Ends the process; after a failure at once, since a collective may wait for other ranks.

    At once also where DeepSpeed was used: it keeps process groups for ever, whose threads may abort
    an interpreter that ends in order. Everything is written by then.
    """
    if code == SUCCESS and "deepspeed" not in sys.modules:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    with calm_output():
        exit_code = main()
    _end(exit_code)
