"""Builds the index of finished shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.durable_files import new_directory, sha256_of_file
from data_pipelines.errors import UserError
from data_pipelines.index.format import (
    FORMAT_NAME,
    FORMAT_VERSION,
    INDEX_FOLDER,
    KEYS_FILE,
    META_FILE,
    SAMPLES_FILE,
    IndexMeta,
    ShardMeta,
    fingerprint_of,
    sample_dtype,
)
from data_pipelines.index.sample_index import SampleIndex
from data_pipelines.index.scan import ScannedSample, scan_shard


def index_shards(
    shards: Sequence[Path],
    *,
    split: str,
    num_classes: int,
    preshuffle_seed: int | None,
    created_by: str,
    expected_samples: int | None = None,
) -> SampleIndex:
    """Scans the shards of a split and writes `index/` beside them.

    Args:
        shards: The shards in the order that numbers their samples; all in one folder.
        split: Name of the split, for people.
        num_classes: Labels must be in 0 … num_classes - 1.
        preshuffle_seed: Seed of the shuffle the samples were written in; None when they were not.
        created_by: What made the shards, for people.
        expected_samples: How many samples were written, where that is known.

    Raises:
        UserError: A shard is damaged, samples differ in their columns, a label is out of range,
            the count is not the expected one, or there is an index already.
    """
    directory = _common_folder(shards)
    found = [list(scan_shard(path)) for path in shards]
    samples = _sample_table(shards, found, num_classes=num_classes)
    if expected_samples is not None and len(samples) != expected_samples:
        raise UserError(
            f"{directory}: {expected_samples} samples were written, "
            f"but the shards hold {len(samples)}"
        )
    with new_directory(directory / INDEX_FOLDER) as folder:
        np.save(folder / SAMPLES_FILE, samples, allow_pickle=False)
        keys = "".join(f"{sample.key}\n" for shard in found for sample in shard)
        (folder / KEYS_FILE).write_bytes(keys.encode("utf-8"))
        shard_metas = tuple(
            ShardMeta(
                name=path.name,
                bytes=path.stat().st_size,
                num_samples=len(in_shard),
                sha256=sha256_of_file(path),
            )
            for path, in_shard in zip(shards, found, strict=True)
        )
        columns = tuple(found[0][0].extents)
        meta = IndexMeta(
            format=FORMAT_NAME,
            version=FORMAT_VERSION,
            split=split,
            num_samples=len(samples),
            num_classes=num_classes,
            class_counts=tuple(np.bincount(samples["label"], minlength=num_classes).tolist()),
            columns=columns,
            image_shape=_common_shape(found),
            preshuffle_seed=preshuffle_seed,
            shards=shard_metas,
            created_by=created_by,
            fingerprint=fingerprint_of(folder / SAMPLES_FILE, shards=shard_metas, columns=columns),
        )
        meta.write(folder / META_FILE)
    return SampleIndex.open(directory)


def _common_folder(shards: Sequence[Path]) -> Path:
    folders = {path.parent for path in shards}
    if len(folders) != 1:
        names = ", ".join(sorted(map(str, folders))) or "no shards at all"
        raise UserError(f"the shards of a split lie in one folder, not: {names}")
    return folders.pop()


def _sample_table(
    shards: Sequence[Path], found: Sequence[Sequence[ScannedSample]], *, num_classes: int
) -> NDArray[Any]:
    columns: list[str] = []
    rows: list[tuple[int, ...]] = []
    for number, (path, in_shard) in enumerate(zip(shards, found, strict=True)):
        if not in_shard:
            raise UserError(f"{path}: holds no samples")
        for sample in in_shard:
            columns = columns or list(sample.extents)
            if list(sample.extents) != columns:
                raise UserError(
                    f"{path}: sample {sample.key!r} has the columns {', '.join(sample.extents)}, "
                    f"the ones before it {', '.join(columns)}"
                )
            if sample.label >= num_classes:
                raise UserError(
                    f"{path}: sample {sample.key!r} is of class {sample.label}, "
                    f"but the classes are 0 … {num_classes - 1}"
                )
            extents = (value for extent in sample.extents.values() for value in extent)
            rows.append((number, *extents, sample.crc32, sample.label))
    return np.array(rows, dtype=sample_dtype(columns))


def _common_shape(found: Sequence[Sequence[ScannedSample]]) -> tuple[int, int, int] | None:
    shapes = {sample.image_shape for in_shard in found for sample in in_shard}
    if len(shapes) > 1:
        return None
    height, width, channels = shapes.pop()
    return height, width, channels
