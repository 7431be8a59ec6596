"""Shards for the tests, written with `webdataset`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image

from data_pipelines import SampleIndex
from data_pipelines.index import TokenMeta, index_shards

TOKENS = TokenMeta(rows=("input_ids", "token_type_ids"), pad_token_id=9)


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_shards(
    directory: Path, samples: Sequence[Mapping[str, bytes]], *, per_shard: int = 10
) -> list[Path]:
    """Writes samples, keyed by their numbers, and returns the shards."""
    directory.mkdir()
    with webdataset.ShardWriter(
        str(directory / "part-%06d.tar"), maxcount=per_shard, verbose=0, mtime=0
    ) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"sample{number}", **sample})
    return sorted(directory.glob("*.tar"))


def make_photos(directory: Path, num_samples: int, *, per_shard: int = 7) -> SampleIndex:
    """A split of PNG images of 12 x 12 pixels, with labels that are mixed."""
    rng = np.random.default_rng(0)
    samples = [
        {
            "png": png(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)),
            "cls": str(rng.integers(7)).encode(),
        }
        for _ in range(num_samples)
    ]
    return _indexed(write_shards(directory, samples, per_shard=per_shard))


def make_texts(directory: Path, num_samples: int) -> SampleIndex:
    """A split of texts of 1 … 9 tokens; the first token of text i is 100 + i."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(num_samples):
        tokens = rng.integers(10, 90, (2, int(rng.integers(1, 10))), dtype=np.int32)
        tokens[0, 0] = 100 + number
        samples.append({"tokens.npy": npy(tokens), "cls": str(number % 2).encode()})
    return _indexed(write_shards(directory, samples), tokens=TOKENS)


def _indexed(shards: list[Path], *, tokens: TokenMeta | None = None) -> SampleIndex:
    return index_shards(
        shards,
        split="made",
        num_classes=None,
        preshuffle_seed=0,
        created_by="a test",
        tokens=tokens,
    )
