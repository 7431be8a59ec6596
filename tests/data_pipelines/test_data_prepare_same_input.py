"""A finished data set is only taken for what is asked if it was made from the same input."""

import functools
import gzip
from collections.abc import Callable
from pathlib import Path

import archives
import pytest

from data_pipelines import UserError, prepare
from data_pipelines.preparation.record import DatasetRecord

Write = Callable[[Path], None]


def write_folders(folder: Path) -> None:
    archives.write_class_folders(folder, class_names=["x", "y"], per_class=4, seed=1)


def write_more_folders(folder: Path) -> None:
    write_folders(folder)
    (folder / "x/0003.jpg").rename(folder / "x/0004.jpg")


def write_split_folders(folder: Path) -> None:
    for split in ("train", "val"):
        archives.write_class_folders(folder / split, class_names=["x"], per_class=2, seed=1)


def write_other_split_folders(folder: Path) -> None:
    write_split_folders(folder)
    (folder / "val/x/0001.jpg").write_bytes(archives.jpeg_bytes(99))


def write_mnist(folder: Path) -> None:
    archives.write_mnist(folder, num_train=10, num_test=10)


def write_other_mnist(folder: Path) -> None:
    write_mnist(folder)
    labels = archives.idx_bytes(archives.mnist_arrays(10, 0)[1][::-1])
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def write_cifar(folder: Path) -> None:
    folder.mkdir()
    archives.write_cifar(folder / "cifar-10-python.tar.gz", archives.cifar10_files(per_batch=10))


def write_other_cifar(folder: Path) -> None:
    folder.mkdir()
    archives.write_cifar(folder / "cifar-10-python.tar.gz", archives.cifar10_files(per_batch=11))


def write_fewer_imagenet(folder: Path) -> None:
    archives.write_imagenet(
        folder,
        train=archives.imagenet_train_files(per_class=6),
        kit=archives.imagenet_kit(per_class=6),
    )


def write_cola(folder: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        archives.write_lines(folder / name, ["gj\t0\t*\tthe cat", "gj\t1\t\ta dog"])


def write_other_cola(folder: Path) -> None:
    write_cola(folder)
    archives.write_lines(folder / "dev.tsv", ["gj\t0\t*\tthe dog", "gj\t1\t\ta cat"])


@pytest.mark.parametrize(
    ("name", "write", "write_other", "differs", "needs"),
    [
        ("image_folder", write_folders, write_more_folders, "all images", {"val_fraction": 0}),
        ("image_folder", write_split_folders, write_other_split_folders, "val", {}),
        ("imagenet", write_split_folders, write_other_split_folders, "val", {}),
        ("imagenet", archives.write_imagenet, write_fewer_imagenet, "ILSVRC2012_devkit_t12.t", {}),
        ("mnist", write_mnist, write_other_mnist, "train-labels-idx1-ubyte.gz", {}),
        ("cifar10", write_cifar, write_other_cifar, "cifar-10-python.tar.gz", {}),
        ("cola", write_cola, write_other_cola, "dev.tsv", {"tokenizer": True}),
    ],
)
def test_other_input_is_not_taken_for_the_one_that_is_there(
    tmp_path: Path,
    name: str,
    write: Write,
    write_other: Write,
    differs: str,
    needs: dict[str, object],
) -> None:
    write(tmp_path / "one")
    write_other(tmp_path / "other")
    if "tokenizer" in needs:
        archives.write_tokenizer(tmp_path / "tokenizer")
        needs = needs | {"tokenizer": str(tmp_path / "tokenizer")}
    prepare_from = functools.partial(prepare, name, out=tmp_path / "out", **needs)  # type: ignore[arg-type]
    prepare_from(source=tmp_path / "one")
    again = prepare_from(source=tmp_path / "one")
    assert again.already_there
    with pytest.raises(
        UserError, match=rf"made from another input: .*/other differs in {differs}.*never overw"
    ):
        prepare_from(source=tmp_path / "other")
    # The same input at another place is the same.
    (tmp_path / "one").rename(tmp_path / "moved")
    assert prepare_from(source=tmp_path / "moved").already_there


def test_other_tokenizer_of_the_same_name_is_not_taken_for_it(tmp_path: Path) -> None:
    archives.write_tokenizer(tmp_path / "one/bert")
    archives.write_tokenizer(tmp_path / "other/bert", model_max_length=30)
    archives.write_lines(tmp_path / "some.tsv", ["text\tlabel", "the cat\t0", "a dog\t1"])
    prepare_with = functools.partial(
        prepare,
        "table",
        out=tmp_path / "out",
        source=tmp_path / "some.tsv",
        text_columns=("text",),
        label_column="label",
        val_fraction=0,
        max_length=20,
    )
    made = prepare_with(tokenizer=str(tmp_path / "one/bert/"))
    assert DatasetRecord.read(made.directory).options["tokenizer"] == "bert"
    with pytest.raises(UserError, match=r"made with another tokenizer than .*other/bert is now"):
        prepare_with(tokenizer=str(tmp_path / "other/bert"))
    # The whole name on the hub says which one it is.
    with pytest.raises(UserError, match=r"made with tokenizer 'bert' instead of 'somebody/bert'"):
        prepare_with(tokenizer="somebody/bert")
