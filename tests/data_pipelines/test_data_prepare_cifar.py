"""CIFAR, from archives as they are published, whole, damaged and hostile."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from prepared_samples import check_against_reader, npy_samples

from data_pipelines import UserError, prepare
from data_pipelines.preparation.record import DatasetRecord
from data_pipelines.preparation.safe_pickle import load_plain_pickle

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open files


def test_cifar10(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archives.write_cifar(archive, archives.cifar10_files())
    made = prepare("cifar10", out=tmp_path / "out", source=archive)
    expected = [
        (row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes(), (batch + number) % 10)
        for batch in range(1, 6)
        for number, row in enumerate(archives.cifar_arrays(12, batch))
    ]
    assert Counter(npy_samples(made, "train")) == Counter(expected)
    check_against_reader(made, "train", num_samples=60)
    check_against_reader(made, "val", num_samples=12)
    record = DatasetRecord.read(made.directory)
    assert record.class_names == tuple(f"class{number}" for number in range(10))
    assert record.notes[0].startswith("not the published archive, whose md5 is c58f30108f718f92")
    # A folder that holds the archive will do, and gives the same bytes.
    again = prepare("cifar10", out=tmp_path / "again", source=tmp_path)
    for path in made.directory.rglob("*"):
        if path.is_file():
            other = again.directory / path.relative_to(made.directory)
            assert other.read_bytes() == path.read_bytes()


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-100-python.tar.gz"
    archives.write_cifar(archive, archives.cifar100_files())
    made = prepare("cifar100", out=tmp_path / "out", source=archive)
    assert made.class_counts == {"train": (2,) * 100, "val": (1,) * 100}
    check_against_reader(made, "train", num_samples=200)


def with_batch(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        files = archives.cifar10_files() | {"cifar-10-batches-py/data_batch_3": content}
        archives.write_cifar(path, files)

    return write


def without_last_file(path: Path) -> None:
    files = archives.cifar10_files()
    del files["cifar-10-batches-py/test_batch"]
    archives.write_cifar(path, files)


def cut_archive(path: Path) -> None:
    archives.write_cifar(path, archives.cifar10_files())
    path.write_bytes(path.read_bytes()[:-20000])


def wrong_checksum(path: Path) -> None:
    archives.write_cifar(path, archives.cifar10_files())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def batch(**changes: Any) -> bytes:
    content = {"labels": [0, 1], "data": archives.cifar_arrays(2, 0)} | changes
    return archives.python2_pickle(content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (without_last_file, "cifar-10-batches-py/test_batch missing"),
        (cut_archive, "damaged or cut short"),
        (wrong_checksum, "damaged or cut short: CRC check failed"),
        (with_batch(b"\x80\x02}q"), "data_batch_3: damaged pickle"),
        (with_batch(archives.python2_pickle([1])), "data_batch_3: holds no dict"),
        (with_batch(batch(labels=[0])), "data_batch_3: 2 images, but 1 labels"),
        (with_batch(batch(labels=[0, 10])), "train: labels 0 … 10, but the archive names 10"),
        (
            with_batch(batch(data=archives.cifar_arrays(2, 0)[:, :-3])),
            "data_batch_3: no array of 3072 bytes an image",
        ),
    ],
)
def test_damaged_cifar_is_named(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=message):
        prepare("cifar10", out=tmp_path / "out", source=tmp_path)


def test_archive_of_the_published_size_must_be_the_published_one(tmp_path: Path) -> None:
    with (tmp_path / "cifar-10-python.tar.gz").open("wb") as file:
        file.truncate(170498071)
    with pytest.raises(UserError, match="it has the size of the published archive but the md5"):
        prepare("cifar10", out=tmp_path / "out", source=tmp_path)


def test_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    content = archives.hostile_pickle(victim)
    with_batch(content)(tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"names \w+.\w+, which is no plain value: refused"):
        prepare("cifar10", out=tmp_path / "out", source=tmp_path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"(S'true'\nios\nsystem\n.",
        # An array class of its own, an array of objects, and a shape that its bytes do not fill.
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tU\x01btR.",
        b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.",
        archives.python2_pickle(archives.cifar_arrays(1, 0)).replace(
            b"J\x00\x0c\x00\x00", b"J\x00\x0d\x00\x00"
        ),
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        b"\x80\x02P0\n.",
    ],
)
def test_pickles_that_are_more_than_plain_values_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        load_plain_pickle(content)


def test_parts_named_twice_are_not_copied() -> None:
    # Each list names the one before it ten times: 10^5 parts, if they were copied.
    content = b"\x80\x02]q\x00"
    for place in range(5):
        content += b"]q" + bytes([place + 1]) + b"(" + (b"h" + bytes([place])) * 10 + b"e"
    value = load_plain_pickle(content + b".")
    assert value[0] is value[9]
    with pytest.raises(ValueError, match=r"damaged pickle: RecursionError"):
        load_plain_pickle(b"\x80\x02]q\x00h\x00a.")


def test_plain_pickle_reads_what_python_2_wrote() -> None:
    array = archives.cifar_arrays(2, 5)
    value = load_plain_pickle(archives.python2_pickle({"data": array, "labels": [1, -2, None]}))
    assert value[b"labels"] == [1, -2, None]
    assert np.array_equal(value[b"data"], array)


def test_paths_in_archives_lead_nowhere(tmp_path: Path) -> None:
    files = archives.cifar10_files()
    files |= {"../../escaped": b"x", "/tmp/cifar-10-batches-py-escaped": b"x"}
    (tmp_path / "deep" / "in").mkdir(parents=True)
    archive = tmp_path / "deep" / "in" / "cifar-10-python.tar.gz"
    archives.write_cifar(archive, files)
    prepare("cifar10", out=tmp_path / "deep" / "out", source=archive)
    assert not (tmp_path / "escaped").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert not Path("/tmp/cifar-10-batches-py-escaped").exists()
