"""`msam-scale data`: make data sets ready for training, and look at them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.errors import a_few
from launch.arguments import count
from launch.exit_codes import SUCCESS, USER_ERROR

if TYPE_CHECKING:
    from data_pipelines.preparation import PreparedDataset
    from launch.progress import ProgressDisplay

NAME = "data"
HELP = "prepare data sets as WebDataset shards with an index, and check or measure them"

_DATASETS = (
    "digits, mnist, fashion_mnist, cifar10, cifar100, imagenet, image_folder, cola, mrpc, sst2, "
    "qqp, film_reviews, table"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `prepare`, `index`, `check` and `bench`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_prepare(actions.add_parser("prepare", help="write a data set as shards with an index"))

    index = actions.add_parser("index", help="write the index of shards that are there already")
    index.add_argument(
        "shards",
        metavar="PATTERN",
        nargs="+",
        help="shards of one split, in one folder, as DIR/train-{000000..000003}.tar or "
        "'DIR/*.tar'; DIR may be a URL",
    )
    index.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the index (that of the shards); needed for remote and read-only ones",
    )
    index.add_argument(
        "--classes",
        type=count,
        metavar="N",
        help="labels are in 0 … N - 1 (by default the largest one decides)",
    )
    index.add_argument(
        "--ignore",
        nargs="+",
        metavar="EXTENSION",
        default=[],
        help="files in the shards that are neither image nor label, as json",
    )
    _add_workers(index)
    index.set_defaults(action=_index)

    check = actions.add_parser(
        "check", help="check every checksum, every sample and all counts; exit code 2 if one fails"
    )
    check.add_argument("directory", metavar="DIR", help="a prepared data set, or one split of it")
    _add_workers(check)
    check.set_defaults(action=_check)

    bench = actions.add_parser("bench", help="measure how fast samples are loaded, by stage")
    bench.add_argument(
        "split", metavar="DIR", help="a split of a prepared data set, or its shards as for `index`"
    )
    bench.add_argument("--transform", metavar="NAME", help="for images: transform preset (none)")
    bench.add_argument(
        "--workers", type=int, metavar="N", default=0, help="loader processes (0: this process)"
    )
    bench.add_argument(
        "--batch", type=count, metavar="N", help="batch size (64, or all samples if fewer)"
    )
    bench.add_argument(
        "--samples", type=count, metavar="N", default=2048, help="samples for the stages (2048)"
    )
    bench.add_argument(
        "--seconds", type=float, default=2.0, help="how long the loader is measured (2)"
    )
    bench.set_defaults(action=_bench)


def run(arguments: argparse.Namespace) -> int:
    """Carries the action out; prints results to stdout and progress to stderr.

    Returns:
        0, or 2 when `check` found something wrong.
    """
    code: int = arguments.action(arguments)
    return code


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help=f"which data set: {_DATASETS}")
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="folder to make, with train/ and val/"
    )
    parser.add_argument(
        "--source", metavar="PATH", help="file or folder to make it from; not for digits"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split and of the order in the shards (0)"
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share of the samples that becomes val/, for image_folder and table without one",
    )
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="for texts: Hugging Face hub name, or folder"
    )
    parser.add_argument(
        "--max-length",
        type=count,
        metavar="N",
        help="for texts: longer ones are cut to so many tokens (128)",
    )
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="COLUMN",
        help="for table: column of the text, or of two; counted from 1 where there is no header",
    )
    parser.add_argument(
        "--label", metavar="COLUMN", help="for table: column of the label, likewise"
    )
    _add_workers(parser)
    parser.add_argument(
        "--restart", action="store_true", help="do not continue what an interrupted run has done"
    )
    parser.set_defaults(action=_prepare)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        default=1,
        help="processes to use (1); the result does not depend on it",
    )


@contextmanager
def _progress() -> Iterator[ProgressDisplay]:
    from launch.progress import ProgressDisplay

    display = ProgressDisplay()
    try:
        yield display
    finally:
        display.close()


def _prepare(arguments: argparse.Namespace) -> int:
    from data_pipelines.preparation import prepare
    from data_pipelines.preparation.record import printable

    with _progress() as progress:
        prepared = prepare(
            arguments.name,
            out=Path(arguments.out),
            seed=arguments.seed,
            source=arguments.source,
            val_fraction=arguments.val_fraction,
            tokenizer=arguments.tokenizer,
            max_length=arguments.max_length,
            text_columns=None if arguments.text is None else tuple(arguments.text),
            label_column=arguments.label,
            num_workers=arguments.workers,
            restart=arguments.restart,
            progress=progress,
        )
    counts = ", ".join(f"{count} {split}" for split, count in prepared.num_samples.items())
    already = " is there already" if prepared.already_there else ""
    print(f"{printable(arguments.out)}{already}: {counts} samples")
    for line in _classes(prepared):
        print(f"  {line}")
    for note in prepared.notes:
        print(f"  note: {note}")
    return SUCCESS


def _classes(prepared: PreparedDataset) -> Iterator[str]:
    from data_pipelines.preparation.record import printable

    for split, counts in prepared.class_counts.items():
        fewest, most = min(counts), max(counts)
        of_each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        yield f"{split}: {len(counts)} classes of {of_each} samples"
    names = [printable(name) for name in prepared.class_names or ()]
    if names != list(map(str, range(len(names)))):
        numbered = (f"{number} {name}" for number, name in enumerate(names))
        yield f"class numbers: {a_few(numbered, most=12)}"


def _index(arguments: argparse.Namespace) -> int:
    from data_pipelines.index import build_index

    with _progress() as progress:
        index = build_index(
            arguments.shards,
            out=arguments.out,
            num_processes=arguments.workers,
            num_classes=arguments.classes,
            ignored_columns=arguments.ignore,
            progress=progress,
        )
    print(f"{index.directory}: {index.num_samples} samples, {index.num_classes} classes")
    return SUCCESS


def _check(arguments: argparse.Namespace) -> int:
    from data_pipelines.inspection import check_dataset

    with _progress() as progress:
        report = check_dataset(
            arguments.directory, num_workers=arguments.workers, progress=progress
        )
    for problem in report.problems:
        print(f"{problem.where}: {problem.what}")
    if report.num_more_problems:
        print(f"… and {report.num_more_problems} more")
    counts = ", ".join(f"{count} {split}" for split, count in report.num_samples.items())
    found = f"{counts or 'no'} samples, {report.num_bytes / 1e6:.1f} MB"
    if report.is_whole:
        print(f"{arguments.directory}: whole: {found}")
        return SUCCESS
    num_problems = len(report.problems) + report.num_more_problems
    problems = "1 problem" if num_problems == 1 else f"{num_problems} problems"
    print(f"msam-scale: {arguments.directory}: {problems}: {found}", file=sys.stderr)
    return USER_ERROR


def _bench(arguments: argparse.Namespace) -> int:
    from data_pipelines.inspection import bench_split

    report = bench_split(
        arguments.split,
        transform=arguments.transform,
        num_workers=arguments.workers,
        batch_size=arguments.batch,
        num_samples=arguments.samples,
        loader_seconds=arguments.seconds,
    )
    total = sum(stage.seconds for stage in report.stages)
    print(f"{'stage':<10} {'µs a sample':>12} {'samples/s':>12} {'share':>7}")
    for stage in report.stages:
        rate = f"{1 / stage.seconds:12.0f}" if stage.seconds else f"{'-':>12}"
        share = stage.seconds / total if total else 0.0
        print(f"{stage.name:<10} {stage.seconds * 1e6:12.1f} {rate} {share:7.1%}")
    print(
        f"loader with {report.num_workers} workers: {report.samples_per_second:.0f} samples/s, "
        f"{report.bytes_per_sample:.0f} bytes a sample; stages measured with "
        f"{report.num_samples} samples"
    )
    return SUCCESS
