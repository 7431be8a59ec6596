"""ImageNet, from tars as they are published, whole and damaged."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archives
import pytest
from prepared_samples import check_against_reader, raw_samples

from data_pipelines import UserError, prepare
from data_pipelines.preparation.record import DatasetRecord

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open files


def test_imagenet_from_the_published_tars(tmp_path: Path) -> None:
    archives.write_imagenet(tmp_path / "in")
    made = prepare("imagenet", out=tmp_path / "out", source=tmp_path / "in", num_workers=2)
    order = sorted(archives.WORDNET_IDS.values())
    expected = []
    for name, content in archives.imagenet_train_files().items():
        with tarfile.open(fileobj=io.BytesIO(content)) as inner:
            for member in inner:
                file = inner.extractfile(member)
                assert file is not None
                expected.append((file.read(), order.index(name.removesuffix(".tar"))))
    assert Counter(raw_samples(made, "train", "jpg")) == Counter(expected)
    expected_val = [
        (content, order.index(archives.WORDNET_IDS[kit_number]))
        for content, kit_number in zip(
            archives.imagenet_val_files().values(), archives.VALIDATION, strict=True
        )
    ]
    assert Counter(raw_samples(made, "val", "jpg")) == Counter(expected_val)
    assert DatasetRecord.read(made.directory).class_names == tuple(order)
    check_against_reader(made, "train", num_samples=21)


def test_imagenet_from_class_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        archives.write_class_folders(
            tmp_path / "in" / split, class_names=["n01", "n02"], per_class=3, seed=1
        )
    made = prepare("imagenet", out=tmp_path / "out", source=tmp_path / "in")
    assert made.class_counts == {"train": (3, 3), "val": (3, 3)}


def cut_train_tar(folder: Path) -> None:
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:-30000])


def zeroed_inner_header(folder: Path) -> None:
    path = folder / "ILSVRC2012_img_train.tar"
    content = bytearray(path.read_bytes())
    start = content.index(b"n01440764_26.JPEG")
    content[start : start + 512] = bytes(512)
    path.write_bytes(content)


def rewrite(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        archives.write_imagenet(folder, **changes)

    return write


def flipped(content: bytes) -> bytes:
    return content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]


def climbing_name() -> dict[str, bytes]:
    files = archives.imagenet_train_files()
    files["n01440764.tar"] = archives.tar_bytes({"../../n01440764_1.JPEG": b"x"})
    return files


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_train_tar, r"img_train.tar: (cut short|not a whole)"),
        (zeroed_inner_header, r"img_train.tar: damaged: no valid header at byte \d+, yet data"),
        (
            rewrite(kit=archives.imagenet_kit(per_class=8)),
            r"n02119789.tar: 7 images, but the development kit says 8",
        ),
        (
            rewrite(train=dict(list(archives.imagenet_train_files().items())[:2])),
            r"1 of 3 classes are missing, such as n02100735.tar",
        ),
        (
            rewrite(val=dict(list(archives.imagenet_val_files().items())[:4])),
            r"1 of 5 images are missing, such as number 5",
        ),
        (
            rewrite(train=archives.imagenet_train_files() | {"n09999999.tar": b""}),
            r"n09999999.tar: there a second time, or no class of the development kit",
        ),
        (rewrite(train=climbing_name()), r"'../../n01440764_1.JPEG' is no image of this class"),
        (rewrite(kit=archives.imagenet_kit()[:-100]), r"devkit_t12.tar.gz: damaged or cut short"),
        # Without the last bytes, and with one bit of the checksum flipped.
        (rewrite(kit=archives.imagenet_kit()[:-2]), r"devkit_t12.tar.gz: damaged or cut short"),
        (rewrite(kit=flipped(archives.imagenet_kit())), r"devkit_t12.tar.gz: damaged or cut short"),
        (
            rewrite(kit=archives.imagenet_kit(meta=b"")),
            r"devkit_t12.tar.gz: not as published: MatReadError",
        ),
        (
            lambda folder: (folder / "ILSVRC2012_img_val.tar").unlink(),
            r"holds neither train/ and val/ .* nor ILSVRC2012_img_val.tar",
        ),
    ],
)
def test_damaged_imagenet_is_named(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    archives.write_imagenet(tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        prepare("imagenet", out=tmp_path / "out", source=tmp_path / "in")
    assert not (tmp_path / "out").exists()
