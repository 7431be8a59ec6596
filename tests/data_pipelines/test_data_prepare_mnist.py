"""MNIST and its like, from IDX files as they are published, whole and damaged."""

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import archives
import pytest
from prepared_samples import check_against_reader, npy_samples

from data_pipelines import UserError, prepare

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open files


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist(tmp_path: Path, name: str, gz: bool) -> None:
    archives.write_mnist(tmp_path / "in", gz=gz)
    made = prepare(name, out=tmp_path / "out", source=tmp_path / "in", num_workers=2)
    for split, number, seed in (("train", 60, 0), ("val", 20, 1)):
        images, labels = archives.mnist_arrays(number, seed)
        expected = [
            (image.tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)
        ]
        found = npy_samples(made, split)
        assert Counter(found) == Counter(expected)
        assert found != expected
        check_against_reader(made, split, num_samples=number)
    assert made.notes == (
        "train: 60 samples, the published set has 60000",
        "val: 20 samples, the published set has 10000",
    )


def damage_idx(change: Callable[[bytes], bytes], name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / f"{name}.gz"
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))

    return damage


def cut_gz(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-3000])


def flip_in_gz(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_gz, r"train-images-idx3-ubyte.gz: damaged or cut short"),
        (flip_in_gz, r"train-images-idx3-ubyte.gz: damaged or cut short: CRC"),
        (
            damage_idx(lambda content: content[:-1], "t10k-images-idx3-ubyte"),
            r"t10k-images-idx3-ubyte.gz: cut short: 1 bytes or more are missing",
        ),
        (
            damage_idx(lambda content: content + b"\0", "train-labels-idx1-ubyte"),
            r"train-labels-idx1-ubyte.gz: more follows than its header says",
        ),
        (
            damage_idx(
                lambda content: content[:4] + b"\xff" * 12 + content[16:],
                "train-images-idx3-ubyte",
            ),
            r"train-images.*: cut short or damaged: says that it holds 4294967295 x 42",
        ),
        (
            damage_idx(
                lambda content: content[:4] + b"\xff" * 4 + content[8:], "t10k-labels-idx1-ubyte"
            ),
            r"t10k-labels.*: cut short or damaged: says that it holds 4294967295 values",
        ),
        (
            damage_idx(lambda content: b"\0\0\x0d" + content[3:], "train-images-idx3-ubyte"),
            r"begins with 00 00 0d 03, not 00 00 08 03",
        ),
        (
            damage_idx(lambda content: content[:-1] + b"\x0a", "train-labels-idx1-ubyte"),
            r"train-labels-idx1-ubyte.gz: label 10, but the classes are 0 … 9",
        ),
        (
            lambda folder: (folder / "t10k-labels-idx1-ubyte.gz").unlink(),
            r"holds none of t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte.gz",
        ),
    ],
)
def test_damaged_mnist_is_named(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    archives.write_mnist(tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        prepare("mnist", out=tmp_path / "out", source=tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_mnist_with_other_numbers_of_images_and_labels(tmp_path: Path) -> None:
    archives.write_mnist(tmp_path / "in", gz=False)
    _, labels = archives.mnist_arrays(59, 0)
    (tmp_path / "in" / "train-labels-idx1-ubyte").write_bytes(archives.idx_bytes(labels))
    with pytest.raises(UserError, match="60 images, but train-labels-idx1-ubyte has 59 labels"):
        prepare("mnist", out=tmp_path / "out", source=tmp_path / "in")
