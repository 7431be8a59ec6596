"""Small data sets on disk for the tests of the data side."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import archives
import numpy as np
import pytest
from shards import indexed, npy, write_shards

from data_pipelines import PreparedDataset, SampleIndex, prepare

# Returns the index of a split whose image number i holds the number i in its four pixels.
MakeNumbered = Callable[..., SampleIndex]


@pytest.fixture(scope="session")
def digits(digits: Path) -> PreparedDataset:
    """The prepared digits; nobody writes there."""
    return prepare("digits", out=digits)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny-bert"
    archives.write_tokenizer(folder)
    return str(folder)


def modulo_seven(number: int) -> int:
    return number % 7


@pytest.fixture(scope="session")
def numbered_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    @functools.cache
    def write(
        num_samples: int, per_shard: int = 10, label_of: Callable[[int], int] = modulo_seven
    ) -> Path:
        samples = [
            {
                "npy": npy(np.array([number], "<u4").view(np.uint8).reshape(2, 2, 1)),
                "cls": str(label_of(number)).encode(),
            }
            for number in range(num_samples)
        ]
        folder = tmp_path_factory.mktemp("numbered") / "split"
        shards = write_shards(folder, samples, per_shard=per_shard)
        indexed(shards, num_classes=7, preshuffle_seed=None, expected_samples=num_samples)
        return folder

    return write


@pytest.fixture
def make_numbered(tmp_path: Path, numbered_once: Callable[..., Path]) -> MakeNumbered:
    """Makes splits that their test may damage."""

    def make(
        num_samples: int,
        *,
        per_shard: int = 10,
        name: str = "numbered",
        label_of: Callable[[int], int] = modulo_seven,
    ) -> SampleIndex:
        once = numbered_once(num_samples, per_shard, label_of)
        return SampleIndex.open(shutil.copytree(once, tmp_path / name))

    return make
