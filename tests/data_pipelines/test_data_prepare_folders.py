"""Images in a folder a class, whole and damaged."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import archives
import pytest
from prepared_samples import check_against_reader, raw_samples

from data_pipelines import UserError, prepare
from data_pipelines.preparation.record import DatasetRecord

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open files


def test_image_folder_with_splits(tmp_path: Path) -> None:
    names = ["b class", "Ä", "a"]
    archives.write_class_folders(tmp_path / "in/train", class_names=names, per_class=9, seed=1)
    archives.write_class_folders(tmp_path / "in/test", class_names=names[:2], per_class=4, seed=2)
    (tmp_path / "in/train/a/notes.txt").write_text("no image")
    (tmp_path / "in/train/a/.hidden.bmp").write_text("no image")
    made = prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", num_workers=2)
    order = sorted(names)
    expected = [
        (path.read_bytes(), order.index(path.parent.name))
        for path in (tmp_path / "in/train").rglob("*.jpg")
    ]
    assert Counter(raw_samples(made, "train", "jpg")) == Counter(expected)
    assert made.class_counts == {"train": (9, 9, 9), "val": (0, 4, 4)}
    assert DatasetRecord.read(made.directory).class_names == tuple(order)
    check_against_reader(made, "val", num_samples=8)
    assert made.notes == (f"{tmp_path / 'in/train'}: left out, no images: 1 .txt",)


def test_image_folder_is_split_by_a_fraction(tmp_path: Path) -> None:
    archives.write_class_folders(
        tmp_path / "in", class_names=["x", "y"], per_class=20, seed=1, kind="PNG"
    )
    made = prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0.25)
    assert made.num_samples == {"train": 30, "val": 10}
    both = [raw_samples(made, split, "png") for split in ("train", "val")]
    everything = [path.read_bytes() for path in (tmp_path / "in").rglob("*.png")]
    assert Counter(content for split in both for content, _ in split) == Counter(everything)
    other = prepare(
        "image_folder", out=tmp_path / "seed", source=tmp_path / "in", val_fraction=0.25, seed=7
    )
    assert {content for content, _ in both[1]} != {
        content for content, _ in raw_samples(other, "val", "png")
    }
    whole = prepare("image_folder", out=tmp_path / "all", source=tmp_path / "in", val_fraction=0)
    assert whole.num_samples == {"train": 40}
    with pytest.raises(UserError, match=r"made with val_fraction 0.25 instead of 0.5"):
        prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0.5)


def test_mixed_formats_are_said(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        archives.write_class_folders(
            tmp_path / "in", class_names=["x"], per_class=3, seed=1, kind=kind
        )
    made = prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0)
    assert made.notes == (
        "images of several formats (3 .jpg, 3 .png, 3 .webp) are all stored as .jpg; "
        "decoders look at the content",
    )
    check_against_reader(made, "train", num_samples=9)


def half_an_image(root: Path) -> None:
    path = root / "train/x/0001.jpg"
    path.write_bytes(path.read_bytes()[:200])


def no_image(root: Path) -> None:
    (root / "train/y/0000.jpg").write_bytes(b"<html>404</html>")


def empty_class(root: Path) -> None:
    (root / "train/empty").mkdir()


def unknown_class(root: Path) -> None:
    archives.write_class_folders(root / "val", class_names=["z"], per_class=1, seed=0)


def foreign_image(root: Path) -> None:
    (root / "train/x/0009.TIFF").write_bytes(b"II*\0")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (half_an_image, r"train/x/0001.jpg: damaged or not whole"),
        (no_image, r"train/y/0000.jpg: damaged or not whole"),
        (empty_class, r"train/empty: holds no images"),
        (unknown_class, r"val: classes that training does not have: z"),
        (foreign_image, r"0009.TIFF: images ending in .tiff cannot be decoded; convert them"),
    ],
)
def test_damaged_image_folder_is_named(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    for split in ("train", "val"):
        archives.write_class_folders(
            tmp_path / "in" / split, class_names=["x", "y"], per_class=3, seed=1
        )
    damage(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_image_folder_needs_to_know_the_validation_split(tmp_path: Path) -> None:
    archives.write_class_folders(tmp_path / "in/train", class_names=["x"], per_class=2, seed=1)
    with pytest.raises(UserError, match=r"train: has no validation split beside it"):
        prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in")
    archives.write_class_folders(tmp_path / "in/val", class_names=["x"], per_class=2, seed=1)
    with pytest.raises(UserError, match=r"val-fraction: without effect, .*/in/val is"):
        prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0.1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: has no subfolders; each class needs one"):
        prepare("image_folder", out=tmp_path / "out", source=tmp_path / "empty", val_fraction=0.1)


def test_images_beside_class_folders_are_said(tmp_path: Path) -> None:
    archives.write_class_folders(tmp_path / "in", class_names=["x"], per_class=2, seed=1)
    for name in ("stray.JPG", "other.png", ".hidden.jpg", "readme.txt"):
        (tmp_path / "in" / name).write_bytes(archives.jpeg_bytes(7))
    made = prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0)
    assert made.num_samples == {"train": 2}
    assert made.notes == (f"{tmp_path / 'in'}: left out, beside the class folders: 1 .jpg, 1 .png",)


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    archives.write_class_folders(tmp_path / "in", class_names=["x", "y"], per_class=2, seed=1)
    for hidden in (".ipynb_checkpoints", "x/.ipynb_checkpoints", "y/deep/.cache/more"):
        (tmp_path / "in" / hidden).mkdir(parents=True)
        (tmp_path / "in" / hidden / "copy.jpg").write_bytes(archives.jpeg_bytes(7))
    (tmp_path / "in/y/deep/seen.jpg").write_bytes(archives.jpeg_bytes(8))
    made = prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0)
    assert made.class_counts == {"train": (2, 3)}
    assert DatasetRecord.read(made.directory).class_names == ("x", "y")
    assert made.notes == ()


@pytest.mark.parametrize("target", ["in", "in/x", "in/x/sub", "in/y"])
def test_links_that_multiply_samples_are_refused(tmp_path: Path, target: str) -> None:
    archives.write_class_folders(tmp_path / "in", class_names=["x", "y"], per_class=2, seed=1)
    (tmp_path / "in/x/sub").mkdir()
    (tmp_path / "in/x/sub/again").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=r"in/.*: the same folder as .*/in/.* remove the link"):
        prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0)


def test_links_to_images_elsewhere_are_followed(tmp_path: Path) -> None:
    archives.write_class_folders(tmp_path / "kept", class_names=["x", "y"], per_class=2, seed=1)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").symlink_to(tmp_path / "kept/x")
    (tmp_path / "in/b").mkdir()
    (tmp_path / "in/b/one.jpg").symlink_to(tmp_path / "kept/y/0000.jpg")
    made = prepare("image_folder", out=tmp_path / "out", source=tmp_path / "in", val_fraction=0)
    assert made.class_counts == {"train": (2, 1)}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    archives.write_class_folders(tmp_path / "in", class_names=["x"], per_class=2, seed=1)
    odd = os.fsdecode(b"\xe9")
    (tmp_path / "in/x" / f"0000{odd}.jpg").write_bytes(archives.jpeg_bytes(3))
    (tmp_path / "in/x" / f"left.{odd}").write_text("no image")
    (tmp_path / "in").rename(tmp_path / odd)
    made = prepare("image_folder", out=tmp_path / "out", source=tmp_path / odd, val_fraction=0)
    assert made.num_samples == {"train": 3}
    assert made.notes == (f"{tmp_path}/\\udce9: left out, no images: 1 .\\udce9",)
    (tmp_path / odd / odd).mkdir()
    with pytest.raises(UserError, match=r"\\udce9: the name of a class has to be UTF-8; rename"):
        prepare("image_folder", out=tmp_path / "new", source=tmp_path / odd, val_fraction=0)


@pytest.mark.parametrize(("fraction", "message"), [(0.9, "0 to train and 1"), (0.1, "1 to train")])
def test_fraction_that_empties_a_split_is_refused(
    tmp_path: Path, fraction: float, message: str
) -> None:
    archives.write_class_folders(tmp_path / "in", class_names=["x"], per_class=1, seed=1)
    with pytest.raises(UserError, match=rf"val-fraction: {fraction} of 1 samples leaves {message}"):
        prepare("image_folder", out=tmp_path / "o", source=tmp_path / "in", val_fraction=fraction)
