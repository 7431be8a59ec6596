"""What prepared shards hold, as plain webdataset and as our own reader see it."""

import gc
import io

import numpy as np
import webdataset

from data_pipelines import PreparedDataset, SampleIndex, ShardReader


def raw_samples(made: PreparedDataset, split: str, column: str) -> list[tuple[bytes, int]]:
    """Payload and label of every sample, as plain webdataset reads the shards."""
    shards = sorted(map(str, made.splits[split].glob("*.tar")))
    samples = [
        (sample[column], int(sample["cls"]))
        for sample in webdataset.WebDataset(shards, shardshuffle=False)
    ]
    gc.collect()
    return samples


def npy_samples(made: PreparedDataset, split: str) -> list[tuple[bytes, int]]:
    return [
        (np.load(io.BytesIO(content), allow_pickle=False).tobytes(), label)
        for content, label in raw_samples(made, split, "npy")
    ]


def check_against_reader(made: PreparedDataset, split: str, *, num_samples: int) -> None:
    """Our own reader finds the samples that webdataset finds, whole and decodable."""
    index = SampleIndex.open(made.splits[split])
    labels = sorted(sample.label for _, sample in ShardReader(index).read(range(num_samples)))
    assert index.num_samples == num_samples
    assert sum(made.class_counts[split]) == num_samples
    assert labels == sorted(
        label for label, count in enumerate(made.class_counts[split]) for _ in range(count)
    )
