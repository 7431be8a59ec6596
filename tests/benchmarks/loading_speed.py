"""Measures loaders of images against each other, and how long resuming takes.

    python tests/benchmarks/loading_speed.py [--samples 512] [--rounds 9] [--cifar DIR/train]

Takes scikit-image's photographs if that is installed, and else the two of scikit-learn. All loaders
read the same files, augment alike and run in turns, in a new order each round, so that other work
on the machine falls on all of them. A turn is an epoch that is not counted, in which workers start
and images get into the page cache, or into memory where they stay there, and then whole epochs.
Printed is the median over the rounds.

A core's speed is samples by CPU time of this process and its workers, with all libraries set to one
thread a process. The clock's speed is what arrives while nothing else happens in this process.
"""

import argparse
import gc
import json
import math
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import psutil
import torch
from _loading_data import StoredImages, photograph_files, small_files, store
from _loading_resume import ORDERS, first_batch_delay, large_split
from _loading_rivals import CLASSIC, Batches, MakeLoader, photograph_contenders, small_contenders

_LIBRARIES = ("torch", "torchvision", "webdataset", "timm", "pillow", "simplejpeg")
# An epoch of small images would otherwise be over in no time.
_SMALL_PER_PHOTOGRAPH = 8
_BATCH_SIZE = {"photographs": 64, "small": 128}
_DELAY_PARTS = ("ready", "first_batch", "total")


@dataclass(frozen=True)
class Speed:
    """Samples in a second, of CPU time and by the clock."""

    per_core: float
    by_clock: float


@dataclass(frozen=True)
class Result:
    """What was measured of a loader: a value a round."""

    data: str
    num_workers: int
    loader: str
    speeds: list[Speed]

    @property
    def median(self) -> Speed:
        """The medians over the rounds."""
        return Speed(
            median(speed.per_core for speed in self.speeds),
            median(speed.by_clock for speed in self.speeds),
        )


def measure_speed(make: MakeLoader, *, num_workers: int, num_samples: int, seconds: float) -> Speed:
    """Measures whole epochs.

    Args:
        make: Makes the loader.
        num_workers: Its processes.
        num_samples: How many samples an epoch has; checked.
        seconds: Epochs begin until so much time is over.
    """
    loader = make(num_workers)
    counted = _run_epoch(loader)
    assert counted == num_samples, f"{counted} samples in an epoch instead of {num_samples}"
    counted = 0
    begin, cpu_begin = time.perf_counter(), _cpu_seconds()
    while not counted or time.perf_counter() - begin < seconds:
        counted += _run_epoch(loader)
    elapsed, cpu_elapsed = time.perf_counter() - begin, _cpu_seconds() - cpu_begin
    del loader
    # Ends the workers.
    gc.collect()
    # The CPU time of other processes is told in ticks, and may not have moved.
    return Speed(counted / max(cpu_elapsed, 1e-9), counted / elapsed)


def _run_epoch(loader: Batches) -> int:
    return sum(len(labels) for _, labels in loader)


def _cpu_seconds() -> float:
    """Returns the CPU time of this process, of the children it has and of those it had."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return total


def compare(
    data: str,
    contenders: dict[str, MakeLoader],
    *,
    images: StoredImages,
    num_workers: Sequence[int],
    rounds: int,
    seconds: float,
) -> list[Result]:
    """Measures all contenders with each number of workers in turns."""
    results = [Result(data, number, name, []) for number in num_workers for name in contenders]
    for _ in range(rounds):
        for result in random.sample(results, len(results)):
            speed = measure_speed(
                contenders[result.loader],
                num_workers=result.num_workers,
                num_samples=images.num_samples,
                seconds=seconds,
            )
            result.speeds.append(speed)
    return results


def print_speeds(results: Sequence[Result], *, num_workers: int) -> None:
    """Prints the table for one number of workers."""
    shown = [result for result in results if result.num_workers == num_workers]
    classic = next(result for result in shown if result.loader == CLASSIC).median
    where = f"{num_workers} workers" if num_workers else "in the process itself (0 workers)"
    print(f"\n{shown[0].data}, {where}")
    print(f"{'':48}{'samples/s/core':>15}{'ratio':>8}{'by the clock':>15}{'ratio':>8}")
    for result in shown:
        speed = result.median
        print(
            f"{result.loader:48}{speed.per_core:15.0f}{speed.per_core / classic.per_core:8.2f}"
            f"{speed.by_clock:15.0f}{speed.by_clock / classic.by_clock:8.2f}"
        )


def measure_resume(
    images: StoredImages,
    directory: Path,
    *,
    num_workers: Sequence[int],
    rounds: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Measures starts at 0 and 50 % of an epoch, and prints the table."""
    index = large_split(images, directory)
    cases = [
        (order, number, share) for order in ORDERS for number in num_workers for share in (0.0, 0.5)
    ]
    delays: dict[tuple[str, int, float], list[Any]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case in random.sample(cases, len(cases)):
            order, number, share = case
            delay = first_batch_delay(
                index.directory,
                order=order,
                num_workers=number,
                batch_size=batch_size,
                share_done=share,
            )
            delays[case].append(delay)
            gc.collect()
    print(f"\nuntil the first batch of {batch_size}, {index.num_samples} samples, seconds")
    print(f"{'order':10}{'workers':>8}{'epoch done':>12}{'ready':>10}{'batch':>10}{'total':>10}")
    for (order, number, share), found in delays.items():
        times = [median(getattr(one, name) for one in found) for name in _DELAY_PARTS]
        print(f"{order:10}{number:8}{share:12.0%}" + "".join(f"{each:10.3f}" for each in times))
    return [
        {
            "order": order,
            "num_workers": number,
            "share_done": share,
            "delays": [asdict(one) for one in found],
        }
        for (order, number, share), found in delays.items()
    ]


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512, help="photographs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="shortest turn")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], choices=(0, 1, 2))
    parser.add_argument("--data", nargs="+", default=list(_BATCH_SIZE), choices=list(_BATCH_SIZE))
    parser.add_argument("--cifar", type=Path, help="prepared split to take the small images from")
    parser.add_argument("--resume", action="store_true", help="measure resuming, too")
    parser.add_argument("--json", type=Path, help="file for all values of all rounds")
    parsed = parser.parse_args()
    # For full batches of the usual size; what falls below is there to try things out.
    step = 128 if parsed.samples > 128 else 16
    if parsed.samples < 1 or parsed.samples % step:
        parser.error(f"--samples: {parsed.samples} is not a multiple of {step}, which is needed")
    if parsed.rounds < 1:
        parser.error(f"--rounds: {parsed.rounds}, but 1 or more are needed")
    return parsed


def main() -> None:
    """Prints the tables."""
    options = _parsed()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(", ".join(f"{name} {version(name)}" for name in _LIBRARIES))
    results: list[Result] = []
    resumes: list[dict[str, Any]] = []
    make: dict[str, Callable[..., dict[str, MakeLoader]]] = {
        "photographs": photograph_contenders,
        "small": small_contenders,
    }
    with TemporaryDirectory() as work:
        for data in options.data:
            if data == "photographs":
                files = photograph_files(options.samples)
            else:
                num_samples = options.samples * _SMALL_PER_PHOTOGRAPH
                files = small_files(num_samples, split=options.cifar)
            print(f"\n{data}: {files.description}")
            images = store(files, Path(work) / data)
            # All batches are full, also where two workers have half of the samples each.
            batch_size = math.gcd(_BATCH_SIZE[data], images.num_samples // 2)
            found = compare(
                data,
                make[data](images, batch_size=batch_size),
                images=images,
                num_workers=options.workers,
                rounds=options.rounds,
                seconds=options.seconds,
            )
            for number in options.workers:
                print_speeds(found, num_workers=number)
            results += found
            if options.resume and data == "photographs":
                resumes = measure_resume(
                    images,
                    Path(work) / "large",
                    num_workers=options.workers,
                    rounds=options.rounds,
                    batch_size=_BATCH_SIZE[data],
                )
    if options.json is not None:
        content = {
            "versions": {name: version(name) for name in _LIBRARIES},
            "results": [asdict(result) for result in results],
            "resumes": resumes,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
