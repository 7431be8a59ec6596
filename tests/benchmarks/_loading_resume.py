"""How long it takes until the first batch, at the start and in the middle of an epoch."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _loading_data import StoredImages

from data_pipelines.index import SampleIndex
from data_pipelines.index.format import (
    INDEX_FOLDER,
    KEYS_FILE,
    META_FILE,
    SAMPLES_FILE,
    IndexMeta,
    fingerprint_of,
)
from data_pipelines.loading import MicroBatchLoader
from data_pipelines.transforms import transform_preset

ORDERS = ("global", "window", "lanes")
_NUM_SHARDS = 1280
_SAMPLES_PER_SHARD = 1000


@dataclass(frozen=True)
class Delay:
    """How long a loader took, in seconds by the clock.

    Attributes:
        ready: From a closed index to a loader that stands where it is to go on.
        first_batch: From there to the first batch, workers started.
    """

    ready: float
    first_batch: float

    @property
    def total(self) -> float:
        """From a closed index to the first batch."""
        return self.ready + self.first_batch


def large_split(images: StoredImages, directory: Path) -> SampleIndex:
    """Makes a split of 1.28 million samples in 1280 shards, all of which are one file on disk.

    The samples of every shard are those of the first shard of `images`, again and again. What is
    read and decoded is real, but comes from the page cache.

    Args:
        images: Their first shard is what all shards are.
        directory: Where to; is made. On the file system of `images`.
    """
    index = images.index
    (directory / INDEX_FOLDER).mkdir(parents=True)
    own = index.samples[index.samples["shard"] == 0]
    samples = np.tile(np.resize(own, _SAMPLES_PER_SHARD), _NUM_SHARDS)
    samples["shard"] = np.repeat(np.arange(_NUM_SHARDS), _SAMPLES_PER_SHARD)
    np.save(directory / INDEX_FOLDER / SAMPLES_FILE, samples)
    keys = "".join(f"{number:07d}\n" for number in range(len(samples)))
    (directory / INDEX_FOLDER / KEYS_FILE).write_text(keys)
    first = index.meta.shards[0]
    shards = tuple(
        first.model_copy(
            update={"name": f"train-{number:06d}.tar", "num_samples": _SAMPLES_PER_SHARD}
        )
        for number in range(_NUM_SHARDS)
    )
    for shard in shards:
        (directory / shard.name).hardlink_to(index.shard_path(0))
    changes: dict[str, Any] = {
        "num_samples": len(samples),
        "class_counts": tuple(np.bincount(samples["label"], minlength=index.num_classes).tolist()),
        "shards": shards,
    }
    meta: IndexMeta = index.meta.model_copy(update=changes)
    fingerprint = fingerprint_of(directory / INDEX_FOLDER, meta)
    meta = meta.model_copy(update={"fingerprint": fingerprint})
    meta.write(directory / INDEX_FOLDER / META_FILE)
    return SampleIndex.open(directory)


def first_batch_delay(
    directory: Path, *, order: str, num_workers: int, batch_size: int, share_done: float
) -> Delay:
    """Measures one start.

    Args:
        directory: The split.
        order: Name of the sample order.
        num_workers: Processes that load.
        batch_size: Samples of a batch, which are decoded for the first one.
        share_done: Which part of the epoch is done; 0 starts without a state.
    """
    state = None
    if share_done:
        before = _loader(directory, order=order, num_workers=0, batch_size=batch_size)
        state = before.state_dict(steps_done=int(before.steps_per_epoch * share_done))
    begin = time.perf_counter()
    loader = _loader(directory, order=order, num_workers=num_workers, batch_size=batch_size)
    if state is not None:
        loader.load_state_dict(state)
    ready = time.perf_counter()
    images, _ = next(iter(loader))
    end = time.perf_counter()
    assert len(images) == batch_size
    return Delay(ready - begin, end - ready)


def _loader(directory: Path, *, order: str, num_workers: int, batch_size: int) -> MicroBatchLoader:
    return MicroBatchLoader(
        SampleIndex.open(directory),
        order=order,
        seed=0,
        batch_size=batch_size,
        positions=[range(batch_size)],
        transform=transform_preset("inception_tv"),
        num_workers=num_workers,
        first_step=0,
        num_steps=_NUM_SHARDS * _SAMPLES_PER_SHARD // batch_size,
    )
