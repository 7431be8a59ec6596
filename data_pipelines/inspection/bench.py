"""Measures how fast a split is read, stage by stage, and what the time goes into."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading import MicroBatchLoader
from data_pipelines.order.mixing import derive_key
from data_pipelines.order.permutation import Permutation
from data_pipelines.reading import ShardReader
from data_pipelines.transforms import TransformPreset, transform_preset
from data_pipelines.transforms.identity import augmented

_NUM_ROUNDS = 5
_DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class StageTime:
    """A stage and its CPU time for a sample, in seconds: the median over the rounds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class BenchReport:
    """What was measured.

    Attributes:
        num_samples: With how many samples the stages were measured.
        bytes_per_sample: Mean size of a stored sample.
        stages: read, decode, transform and hand-off, in this order. `hand-off` is what receiving
            batches costs the training process; without workers, putting them together.
        num_workers: Loader processes of the last figure.
        samples_per_second: What the loader delivers, by the clock.
    """

    num_samples: int
    bytes_per_sample: float
    stages: tuple[StageTime, ...]
    num_workers: int
    samples_per_second: float


def bench_split(
    location: str | Path,
    *,
    transform: str | None = None,
    num_workers: int = 0,
    batch_size: int | None = None,
    num_samples: int = 2048,
    loader_seconds: float = 2.0,
    seed: int = 0,
) -> BenchReport:
    """Measures a split, read in a random order.

    All stages are those of training and are measured in turns, round by round, so that other work
    on the machine falls on all of them. Stages are CPU times of one process; files come from the
    page cache when they are in it.

    Args:
        location: The split, see `SampleIndex.open`.
        transform: For images: name of the transform preset; by default `none`.
        num_workers: Processes of the loader.
        batch_size: Samples of a batch; by default 64, or as many as there are if those are fewer.
        num_samples: Samples to measure the stages with; fewer when the split is smaller.
        loader_seconds: How long the loader is measured, after a start of the same length.
        seed: Of the random order and the augmentation.

    Raises:
        UserError: The split cannot be read, or a setting is out of range.
    """
    index = SampleIndex.open(location)
    holds_text = index.meta.tokens is not None
    if holds_text and transform is not None:
        raise UserError(f"transform: {transform!r} is without effect on text; leave it out")
    preset = None if holds_text else transform_preset(transform or "none")
    if batch_size is None:
        batch_size = min(_DEFAULT_BATCH_SIZE, index.num_samples)
    if not 1 <= batch_size <= index.num_samples:
        raise UserError(f"batch size: {batch_size} is not in 1 … {index.num_samples}")
    if not 0 <= loader_seconds < math.inf:  # which is false for a NaN, too
        raise UserError(f"seconds: {loader_seconds} is no time the loader can be measured for")
    if num_samples < 1:
        raise UserError(f"samples: {num_samples} is not positive")
    shuffled = Permutation(index.num_samples, key=derive_key("bench", seed))
    ids = shuffled(np.arange(min(num_samples, index.num_samples)))
    rounds = [
        _measure_stages(index, preset, ids=part, seed=seed)
        for part in np.array_split(ids, min(_NUM_ROUNDS, len(ids)))
    ]
    stages = {name: median(one[name] for one in rounds) for name in rounds[0]}
    loader = MicroBatchLoader(
        index,
        order="global",
        seed=seed,
        batch_size=batch_size,
        positions=[range(batch_size)],
        transform=preset,
        num_workers=num_workers,
        first_step=0,
        num_steps=sys.maxsize,
    )
    num_loaded, elapsed, own = _measure_loader(loader, batch_size, seconds=loader_seconds)
    hand_off = own / num_loaded
    if not num_workers:
        hand_off = max(0.0, hand_off - sum(stages.values()))
    return BenchReport(
        num_samples=len(ids),
        bytes_per_sample=sum(shard.bytes for shard in index.meta.shards) / index.num_samples,
        stages=tuple(StageTime(*stage) for stage in (*stages.items(), ("hand-off", hand_off))),
        num_workers=num_workers,
        samples_per_second=num_loaded / elapsed,
    )


@dataclass
class _TimedDecoder:
    """Decodes as `decoder` does and adds up the CPU time it takes."""

    decoder: Any
    seconds: float = field(default=0.0)

    def decode(self, payloads: Mapping[str, bytes]) -> Any:
        start = time.process_time()
        sample = self.decoder.decode(payloads)
        self.seconds += time.process_time() - start
        return sample


def _measure_stages(
    index: SampleIndex, preset: TransformPreset | None, *, ids: NDArray[np.int64], seed: int
) -> dict[str, float]:
    """Returns the CPU time of each stage for a sample, in seconds."""
    decoder = _TimedDecoder(index.decoder)
    reader = ShardReader(index.with_decoder(decoder))
    start = time.process_time()
    samples = list(reader.read(ids.tolist()))
    read = time.process_time() - start - decoder.seconds
    reader.close()
    start = time.process_time()
    if preset is not None:
        for position, sample in samples:
            augmented(
                preset.augment, sample.image, seed=seed, epoch=0, sample_id=int(ids[position])
            )
    transformed = time.process_time() - start if preset is not None else 0.0
    totals = {"read": read, "decode": decoder.seconds, "transform": transformed}
    return {name: seconds / len(ids) for name, seconds in totals.items()}


def _measure_loader(
    loader: Iterable[Any], batch_size: int, *, seconds: float
) -> tuple[int, float, float]:
    """Returns how many samples came in how many seconds, and this process's CPU time of them."""
    batches = iter(loader)
    # What workers load ahead while they start is used up before anything is measured.
    _take(batches, seconds=seconds)
    start, start_of_process = time.perf_counter(), time.process_time()
    num_batches = _take(batches, seconds=seconds)
    return (
        num_batches * batch_size,
        time.perf_counter() - start,
        time.process_time() - start_of_process,
    )


def _take(batches: Iterator[Any], *, seconds: float) -> int:
    """Takes batches until the time is over, one at least, and returns how many."""
    end = time.perf_counter() + seconds
    for number, _ in enumerate(batches, start=1):
        if time.perf_counter() >= end:
            return number
    raise AssertionError("the loader goes on and on")
