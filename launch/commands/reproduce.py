"""`msam-scale reproduce`: the paper's tables and figures, over seeds."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from launch.arguments import count
from launch.exit_codes import FAILURE, SUCCESS

if TYPE_CHECKING:
    from msam_scale.reproduction import Plan
    from msam_scale.reproduction.running import Resources

NAME = "reproduce"
HELP = "do the runs of one of the paper's tables or figures, over seeds, and write the table"

# By path: `python -m launch.cli` would look for `launch` in the working folder first.
_COMMAND_LINE = Path(__file__).parents[1] / "cli.py"
_NUM_SEEDS = 5  # section 4: "over five independent runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the experiment, its size and how its runs are spread."""
    parser.add_argument(
        "experiment",
        metavar="TABLE",
        help="table2, table3, table4, table5, figure1 or figureB1; or a .yaml file like those in "
        "configs/reproduce",
    )
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help="setting of all runs, as for train"
    )
    parser.add_argument(
        "--scale",
        choices=("laptop", "paper"),
        default="laptop",
        help="small nets and data, or the real thing; laptop by default",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of runs and results, which all tables may share; reproduction/SCALE by "
        "default",
    )
    parser.add_argument(
        "--seeds", type=count, default=_NUM_SEEDS, metavar="N", help="runs of each entry (5)"
    )
    parser.add_argument(
        "--jobs",
        type=count,
        metavar="N",
        help="runs at a time; by default as many as the GPUs, or at scale laptop the cores, are "
        "enough for, and 1 where times are measured",
    )
    parser.add_argument(
        "--nproc", type=count, metavar="N", help="ranks of each run; by default the experiment's"
    )
    parser.add_argument(
        "--share",
        type=_share,
        default=(0, 1),
        metavar="I/N",
        help="do every N-th run only, from the I-th on, counted from 0: for N machines with one "
        "--out",
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="do these rows only")
    parser.add_argument(
        "--data",
        type=_folder,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="where a data set is; data/NAME by default; may be given several times",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands of the runs and do nothing"
    )


def run(arguments: argparse.Namespace) -> int:
    """Does the experiment; returns 1 where a run failed."""
    from launch.progress import ProgressDisplay
    from msam_scale.reproduction import find_experiment, load_experiment, make_plan, reproduce

    path = find_experiment(arguments.experiment)
    # `--rows A B KEY=VALUE`: what sets something is no row.
    rows = [word for word in arguments.rows if "=" not in word]
    overrides = [*arguments.overrides, *(word for word in arguments.rows if "=" in word)]
    plan = make_plan(
        path,
        load_experiment(path),
        scale=arguments.scale,
        out=Path(arguments.out or f"reproduction/{arguments.scale}"),
        num_seeds=arguments.seeds,
        num_ranks=arguments.nproc,
        rows=rows,
        data=dict(arguments.data),
        overrides=overrides,
    )
    if arguments.dry_run:
        _print_plan(plan, share=arguments.share)
        return SUCCESS
    resources = _resources(arguments, plan)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    display = ProgressDisplay()
    try:
        outcome = reproduce(
            plan,
            command=(sys.executable, str(_COMMAND_LINE)),
            called_as=_called_as(arguments, rows=rows, overrides=overrides),
            resources=resources,
            share=arguments.share,
            say=lambda text: print(text, file=sys.stderr, flush=True),
            progress=display,
        )
    finally:
        display.close()
        signal.signal(signal.SIGTERM, previous)
    print(outcome.table.read_text("utf-8"), end="")
    for problem in outcome.results.problems:
        print(f"msam-scale: {problem}", file=sys.stderr)
    print(f"\nResults: {outcome.table} and {outcome.table.with_suffix('.json')}")
    for failure in outcome.failures:
        print(f"msam-scale: {failure}", file=sys.stderr)
    return FAILURE if outcome.failures else SUCCESS


def _resources(arguments: argparse.Namespace, plan: Plan) -> Resources:
    """Shares GPUs or cores between the runs at a time."""
    import torch

    from msam_scale.reproduction.measures import MEASURES
    from msam_scale.reproduction.running import Resources

    num_ranks = max(cell.num_ranks for cell in plan.cells)
    num_devices, num_cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    if arguments.jobs is not None:
        num_jobs = arguments.jobs
    elif MEASURES[plan.experiment.measure].runs_alone:
        num_jobs = 1
    elif num_devices:
        num_jobs = max(1, num_devices // num_ranks)
    else:
        num_jobs = max(1, num_cores // num_ranks) if arguments.scale == "laptop" else 1
    devices = None
    if num_devices >= num_jobs * num_ranks:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(num_devices)]
        devices = tuple(
            tuple(names[job * num_ranks : (job + 1) * num_ranks]) for job in range(num_jobs)
        )
    return Resources(
        num_jobs=num_jobs,
        num_threads=max(1, num_cores // (num_jobs * num_ranks)),
        devices=devices,
    )


def _print_plan(plan: Plan, *, share: tuple[int, int]) -> None:
    from msam_scale.reproduction.reproduce import share_of

    cells = share_of(plan, share)
    for cell in cells:
        print(shlex.join(["msam-scale", *cell.words]))
    num_runs = f"{len(cells)} of {len(plan.cells)} runs" if share[1] > 1 else f"{len(cells)} runs"
    print(
        f"{num_runs}: {len(plan.scale.rows)} rows, {len(plan.scale.columns)} columns, "
        f"{len(plan.seeds)} seeds",
        file=sys.stderr,
    )


def _called_as(arguments: argparse.Namespace, *, rows: list[str], overrides: list[str]) -> str:
    """The command that leads to the same table, without what does not change it."""
    words = ["msam-scale", "reproduce", arguments.experiment, "--scale", arguments.scale]
    words += ["--seeds", str(arguments.seeds)]
    for option, value in (("--out", arguments.out), ("--nproc", arguments.nproc)):
        words += [] if value is None else [option, str(value)]
    for name, folder in arguments.data:
        words += ["--data", f"{name}={folder}"]
    words += ["--rows", *rows] if rows else []
    return shlex.join([*words, *overrides])


def _interrupt(signal_number: int, frame: FrameType | None) -> Any:
    raise KeyboardInterrupt


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; 0/4 to 3/4 are those of four")
    return int(match[1]), int(match[2])


def _folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} names no folder; cifar10=DIR works")
    return name, Path(folder)
