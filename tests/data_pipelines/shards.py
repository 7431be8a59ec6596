"""Shards for the tests, written with `webdataset`, and what they hold as it and we see it."""

import gc
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image

from data_pipelines import PreparedDataset, SampleIndex, ShardReader
from data_pipelines.index import TokenMeta, index_shards
from data_pipelines.reading import Split

TOKENS = TokenMeta(rows=("input_ids", "token_type_ids"), pad_token_id=9)


def npy(array: NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
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


def indexed(shards: Sequence[Path], **options: Any) -> SampleIndex:
    settings = {"split": "made", "num_classes": None, "preshuffle_seed": 0, **options}
    return index_shards(shards, created_by="a test", **settings)


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
    return indexed(write_shards(directory, samples, per_shard=per_shard))


def make_texts(directory: Path, num_samples: int) -> SampleIndex:
    """A split of texts of 1 … 9 tokens; the first token of text i is 100 + i."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(num_samples):
        tokens = rng.integers(10, 90, (2, int(rng.integers(1, 10))), dtype=np.int32)
        tokens[0, 0] = 100 + number
        samples.append({"tokens.npy": npy(tokens), "cls": str(number % 2).encode()})
    return indexed(write_shards(directory, samples), tokens=TOKENS)


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def damage_sample(index: SampleIndex, sample_id: int, *, column: str = "npy") -> None:
    """Changes a pixel, behind the header of the array file."""
    record = index.samples[sample_id]
    overwrite(index.shard_path(record["shard"]), int(record[f"{column}.offset"]) + 130, b"\x55")


def files_below(directory: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def read_numbers(
    reader: ShardReader, sample_ids: Sequence[int], *, epoch: int | None = None
) -> list[int]:
    """Returns the number in each sample of a numbered split, in the order of `sample_ids`."""
    numbers = [-1] * len(sample_ids)
    for place, sample in reader.read(sample_ids, epoch=epoch):
        numbers[place] = int.from_bytes(sample.image.tobytes(), "little")
        assert sample.label == numbers[place] % 7
    return numbers


def read_all(split: Split) -> list[int]:
    reader = ShardReader(split.index, source=split.source)
    try:
        return read_numbers(reader, range(split.index.num_samples))
    finally:
        reader.close()


def raw_samples(made: PreparedDataset, split: str, column: str) -> list[tuple[bytes, int]]:
    """Payload and label of every sample, as plain webdataset reads the shards."""
    shards = sorted(map(str, made.splits[split].glob("*.tar")))
    samples = [
        (sample[column], int(sample["cls"]))
        for sample in webdataset.WebDataset(shards, shardshuffle=False)
    ]
    gc.collect()
    return samples


def array_samples(
    made: PreparedDataset, split: str, column: str = "npy"
) -> list[tuple[NDArray[Any], int]]:
    return [
        (np.load(io.BytesIO(content), allow_pickle=False), label)
        for content, label in raw_samples(made, split, column)
    ]


def check_against_reader(made: PreparedDataset, split: str, *, num_samples: int) -> None:
    """Our own reader finds the samples that webdataset finds, whole and decodable."""
    index = SampleIndex.open(made.splits[split])
    labels = [sample.label for _, sample in ShardReader(index).read(range(num_samples))]
    assert index.num_samples == num_samples
    counts = np.bincount(labels, minlength=index.num_classes)
    assert made.class_counts[split] == tuple(counts.tolist())
