"""Whether an index can be of its shards, before anything is read or allocated as it says.

A fingerprint tells damage from what was made; whoever makes a false index makes its fingerprint
too. Readers trust positions, sizes and lengths, so each is compared with what it is a part of.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.decoding import SampleDecoder
from data_pipelines.decoding.image_limits import MAX_PIXELS
from data_pipelines.index.format import IndexMeta, offset_field, size_field
from data_pipelines.index.limits import MOST_SAMPLE_BYTES

# So that a table of any length is checked in bounded memory.
_SAMPLES_AT_ONCE = 1 << 20


def implausible(samples: NDArray[Any], meta: IndexMeta, *, decoder: SampleDecoder) -> str | None:
    """What cannot be in an index, in words; None when all is well.

    Args:
        samples: The table of samples, mapped.
        meta: What meta.json says; fits the type and length of the table.
        decoder: Which column is the content.
    """
    found = next(_in_meta(meta, decoder), None)
    num_in_shards = np.zeros(len(meta.shards), np.int64)
    for start in range(0, len(samples), _SAMPLES_AT_ONCE):
        if found is not None:
            break
        part = samples[start : start + _SAMPLES_AT_ONCE]
        found = next(_in_samples(part, meta, decoder), None)
        if found is None:
            num_in_shards += np.bincount(part["shard"], minlength=len(meta.shards))
    if found is None and num_in_shards.tolist() != [each.num_samples for each in meta.shards]:
        found = "counts other samples of a shard than it lists"
    return found


def _in_meta(meta: IndexMeta, decoder: SampleDecoder) -> Iterator[str]:
    if len(meta.class_counts) != meta.num_classes:
        yield f"counts {len(meta.class_counts)} of {meta.num_classes} classes"
    if decoder.holds_text != (meta.tokens is not None):
        yield "has tokens without saying which, or says so of images"
    if meta.image_shape is None:
        return
    height, width, channels = meta.image_shape
    if min(meta.image_shape) < 1 or math.prod(meta.image_shape) > MOST_SAMPLE_BYTES:
        yield f"image_shape {meta.image_shape} is no shape of an image"
    if not decoder.content_column.endswith("npy") and (
        height * width > MAX_PIXELS or channels != 3
    ):
        yield f"image_shape {meta.image_shape} is no shape of a decoded image"


def _in_samples(part: NDArray[Any], meta: IndexMeta, decoder: SampleDecoder) -> Iterator[str]:
    if part["shard"].max() >= len(meta.shards):
        yield f"lists a sample in shard {part['shard'].max()} of {len(meta.shards)}"
        return
    num_bytes = np.array([shard.bytes for shard in meta.shards], np.uint64)[part["shard"]]
    offsets = np.stack([part[offset_field(column)] for column in meta.columns])
    sizes = np.stack([part[size_field(column)] for column in meta.columns]).astype(np.uint64)
    # Not offset + size, which can be 0 in 64 bits.
    is_inside = (sizes <= num_bytes) & (offsets <= num_bytes - np.minimum(sizes, num_bytes))
    if not is_inside.all():
        yield "lists a sample that reaches behind the end of its shard"
        return
    if ((offsets + sizes).max(axis=0) - offsets.min(axis=0)).max() > MOST_SAMPLE_BYTES:
        yield f"lists a sample of more than {MOST_SAMPLE_BYTES} bytes"
    if part["label"].min() < 0 or part["label"].max() >= meta.num_classes:
        yield f"labels {part['label'].min()} … {part['label'].max()} of {meta.num_classes} classes"
    content = part[size_field(decoder.content_column)].astype(np.int64)
    if meta.tokens is not None:
        # Batches are as long as this says, and tokens have four bytes.
        claimed = part["length"].astype(np.int64) * (4 * len(meta.tokens.rows))
        if (claimed > content).any() or part["length"].min() < 1:
            yield "lists a text with more tokens than its bytes can hold, or with none"
    is_stored = decoder.content_column.endswith("npy") and not decoder.holds_text
    if is_stored and meta.image_shape and content.min() < math.prod(meta.image_shape):
        yield f"lists an image of fewer bytes than image_shape {meta.image_shape} has"
