"""Small data sets on disk for the tests of the data side."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from data_pipelines import PreparedDataset, SampleIndex, index_shards, prepare

# Returns the index of a split whose image number i holds the number i in its four pixels.
MakeNumbered = Callable[..., SampleIndex]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepare("digits", out=tmp_path_factory.mktemp("prepared") / "digits")


@pytest.fixture
def make_numbered(tmp_path: Path) -> MakeNumbered:
    def make(
        num_samples: int,
        *,
        per_shard: int = 10,
        name: str = "numbered",
        label_of: Callable[[int], int] = lambda number: number % 7,
    ) -> SampleIndex:
        directory = tmp_path / name
        directory.mkdir()
        pattern = str(directory / "part-%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0, mtime=0) as writer:
            for number in range(num_samples):
                stream = io.BytesIO()
                np.save(stream, np.array([number], "<u4").view(np.uint8).reshape(2, 2, 1))
                writer.write(
                    {
                        "__key__": f"sample{number}",
                        "npy": stream.getvalue(),
                        "cls": str(label_of(number)).encode(),
                    }
                )
        return index_shards(
            sorted(directory.glob("*.tar")),
            split="numbered",
            num_classes=7,
            preshuffle_seed=None,
            created_by="a test",
            expected_samples=num_samples,
        )

    return make
