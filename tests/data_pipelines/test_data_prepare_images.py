"""Images: published archives and class folders, whole, damaged and hostile."""

import functools
import gzip
import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from shards import array_samples, check_against_reader, raw_samples

from data_pipelines import PreparedDataset, UserError, prepare
from data_pipelines.preparation.record import DatasetRecord
from data_pipelines.preparation.safe_pickle import load_plain_pickle

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open files

Prepare = Callable[..., PreparedDataset]
Change = Callable[[Path], object]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    """Prepares from the folder `in` to the folder `out`."""

    def run(name: str, *, source: str = "in", out: str = "out", **options: Any) -> PreparedDataset:
        return prepare(name, out=tmp_path / out, source=tmp_path / source, **options)

    return run


def pixels_of(made: PreparedDataset, split: str) -> list[tuple[bytes, int]]:
    return [(image.tobytes(), label) for image, label in array_samples(made, split)]


@pytest.mark.parametrize(("name", "gz"), [("mnist", True), ("fashion_mnist", False)])
def test_mnist(tmp_path: Path, prepared: Prepare, name: str, gz: bool) -> None:
    archives.write_mnist(tmp_path / "in", gz=gz)
    made = prepared(name)
    for split, number, seed in (("train", 60, 0), ("val", 20, 1)):
        images, labels = archives.mnist_arrays(number, seed)
        expected = [(image.tobytes(), int(label)) for image, label in zip(images, labels)]  # noqa: B905
        found = pixels_of(made, split)
        assert Counter(found) == Counter(expected)
        assert found != expected
        check_against_reader(made, split, num_samples=number)
    assert made.notes == (
        "train: 60 samples, the published set has 60000",
        "val: 20 samples, the published set has 10000",
    )


def test_cifar10(tmp_path: Path, prepared: Prepare) -> None:
    files = archives.cifar10_files()
    # Paths in archives lead nowhere.
    files |= {"../../escaped": b"x", "/tmp/cifar-10-batches-py-escaped": b"x"}
    (tmp_path / "in").mkdir()
    archives.write_cifar(tmp_path / "in" / "cifar-10-python.tar.gz", files)
    # The archive will do, or the folder that holds it.
    made = prepared("cifar10", source="in/cifar-10-python.tar.gz")
    assert prepared("cifar10").already_there
    expected = [
        (row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes(), (batch + number) % 10)
        for batch in range(1, 6)
        for number, row in enumerate(archives.cifar_arrays(12, batch))
    ]
    assert Counter(pixels_of(made, "train")) == Counter(expected)
    check_against_reader(made, "val", num_samples=12)
    record = DatasetRecord.read(made.directory)
    assert record.class_names == tuple(f"class{number}" for number in range(10))
    assert record.notes[0].startswith("not the published archive, whose md5 is c58f30108f718f92")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert not Path("/tmp/cifar-10-batches-py-escaped").exists()


def test_cifar100_takes_the_fine_labels(tmp_path: Path, prepared: Prepare) -> None:
    (tmp_path / "in").mkdir()
    archives.write_cifar(tmp_path / "in" / "cifar-100-python.tar.gz", archives.cifar100_files())
    made = prepared("cifar100")
    assert made.class_counts == {"train": (2,) * 100, "val": (1,) * 100}


def test_imagenet_from_the_published_tars(tmp_path: Path, prepared: Prepare) -> None:
    of_a_mac = {"._n01440764.tar": b"\0\5\x16\7", "__MACOSX/n01440764.tar": b"\0\5\x16\7"}
    archives.write_imagenet(tmp_path / "in", train=of_a_mac | archives.imagenet_train_files())
    made = prepared("imagenet")
    order = sorted(archives.WORDNET_IDS.values())
    expected = []
    for name, content in archives.imagenet_train_files().items():
        with tarfile.open(fileobj=io.BytesIO(content)) as inner:
            for member in inner:
                file = inner.extractfile(member)
                assert file is not None
                expected.append((file.read(), order.index(name.removesuffix(".tar"))))
    assert Counter(raw_samples(made, "train", "jpg")) == Counter(expected)
    images = archives.imagenet_val_files().values()
    labels = [order.index(archives.WORDNET_IDS[number]) for number in archives.VALIDATION]
    assert Counter(raw_samples(made, "val", "jpg")) == Counter(zip(images, labels, strict=True))
    assert DatasetRecord.read(made.directory).class_names == tuple(order)
    check_against_reader(made, "train", num_samples=21)


def folders(root: Path, *names: str, per_class: int = 2, seed: int = 1, **options: Any) -> None:
    archives.write_class_folders(
        root, class_names=names or ("x", "y"), per_class=per_class, seed=seed, **options
    )


def test_folders_with_splits(tmp_path: Path, prepared: Prepare) -> None:
    names = ["b class", "Ä", "a"]
    folders(tmp_path / "in/train", *names, per_class=3)
    folders(tmp_path / "in/test", *names[:2], seed=2)
    (tmp_path / "in/train/a/notes.txt").write_text("no image")
    (tmp_path / "in/train/a/.hidden.bmp").write_text("no image")
    made = prepared("image_folder", num_workers=2)
    order = sorted(names)
    expected = [
        (path.read_bytes(), order.index(path.parent.name))
        for path in (tmp_path / "in/train").rglob("*.jpg")
    ]
    assert Counter(raw_samples(made, "train", "jpg")) == Counter(expected)
    assert made.class_counts == {"train": (3, 3, 3), "val": (0, 2, 2)}
    assert DatasetRecord.read(made.directory).class_names == tuple(order)
    assert made.notes == (f"{tmp_path / 'in/train'}: left out, no images: 1 .txt",)
    (tmp_path / "in/test").rename(tmp_path / "in/val")
    folders(tmp_path / "in/val", "a")
    imagenet = prepared("imagenet", out="imagenet")
    assert imagenet.class_counts == {"train": (3, 3, 3), "val": (2, 2, 2)}


@pytest.mark.parametrize(
    ("train", "val", "left_out"),
    [
        ("Train", "Val", ()),
        ("TRAIN", "TEST", ()),
        ("training", "validation", ("test",)),
        ("train_set", "Valid-2", ("__MACOSX", "notes")),
        ("dataset/train", "dataset/dev", ()),
        ("a/b/Train/images", "a/b/val/images", ("a/b/testing/images",)),
        ("dataset/train", None, ()),
        ("images", None, ()),
        ("", None, ("__MACOSX",)),
    ],
)
def test_splits_are_found_however_they_are_called(
    tmp_path: Path, prepared: Prepare, train: str, val: str | None, left_out: tuple[str, ...]
) -> None:
    folders(tmp_path / "in" / train, "cat", "dog", per_class=4)
    for name in (() if val is None else (val,)) + left_out:
        folders(tmp_path / "in" / name, "cat", "dog", per_class=1)
    made = prepared("image_folder", val_fraction=0.25 if val is None else None)
    assert made.class_names == ("cat", "dog")
    assert made.num_samples == ({"train": 8, "val": 2} if val else {"train": 6, "val": 2})
    said = [name.removeprefix("a/b/").split("/")[0] for name in left_out if name != "__MACOSX"]
    found = [note for note in made.notes if "left out, beside the splits" in note]
    assert [note.partition("splits: ")[2] for note in found] == ([", ".join(said)] if said else [])
    assert prepared("image_folder", val_fraction=None if val else 0.25).already_there


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        (("fold1/a", "fold1/b", "fold2/a", "fold2/b"), r"in: fold1 and fold2 .* \(a, b\)"),
        (("a/good", "a/bad", "b/good", "b/bad"), r"in: a and b hold no images .* rename the"),
        (("train/x/a", "train/x/b", "train/y/a", "train/y/b"), r"in/train: x and y hold no images"),
        (("a", "b", "Val/a", "Val/b"), r"in: Val: called after a split, but none .* after train"),
        (("val/a", "test/a"), r"in: test, val: called after a split, but none .* after train"),
        (("train/a", "Training/a", "val/a"), r"in: Training, train are all called after the split"),
        (("train/a", "train/b", "holdout/a"), r"in: train is called after a split, and holdout be"),
        (("Train", "Val"), r"in/Train: has no subfolders; each class needs one"),
        (("images/a", "images/b", ""), r"in: all images would be of the one class images; give"),
    ],
)
def test_folders_that_would_become_wrong_classes_are_refused(
    tmp_path: Path, prepared: Prepare, trees: tuple[str, ...], message: str
) -> None:
    for tree in trees:
        folders(tmp_path / "in" / Path(tree).parent, Path(tree).name, per_class=1)
    with pytest.raises(UserError, match=message):
        prepared("image_folder", val_fraction=0.5 if "val" not in str(trees).lower() else None)


def test_classes_that_are_called_like_splits_or_have_folders(
    tmp_path: Path, prepared: Prepare
) -> None:
    folders(tmp_path / "in", "train", "bus", "test-tube")
    folders(tmp_path / "in/ship", "images")
    folders(tmp_path / "in/tram", "images", "more")
    made = prepared("image_folder", val_fraction=0)
    assert made.class_names == ("bus", "ship", "test-tube", "train", "tram")
    assert made.class_counts == {"train": (2, 2, 2, 2, 4)}
    # Numbers are in the order of their values.
    folders(tmp_path / "numbers", *map(str, range(12)), per_class=1)
    numbered = prepared("image_folder", source="numbers", out="numbered", val_fraction=0)
    assert numbered.class_names == tuple(map(str, range(12)))


def test_folders_are_split_by_a_fraction(tmp_path: Path, prepared: Prepare) -> None:
    folders(tmp_path / "in", per_class=20, kind="PNG")
    made = prepared("image_folder", val_fraction=0.25)
    assert made.num_samples == {"train": 30, "val": 10}
    both = [raw_samples(made, split, "png") for split in ("train", "val")]
    everything = [path.read_bytes() for path in (tmp_path / "in").rglob("*.png")]
    assert Counter(content for split in both for content, _ in split) == Counter(everything)
    other = prepared("image_folder", out="seed", val_fraction=0.25, seed=7)
    assert set(both[1]) != set(raw_samples(other, "val", "png"))
    whole = prepared("image_folder", out="all", val_fraction=0)
    assert whole.num_samples == {"train": 40}
    with pytest.raises(UserError, match=r"made with val_fraction 0.25 instead of 0.5"):
        prepared("image_folder", val_fraction=0.5)
    for fraction, message in ((0.99, "0 to train and 40"), (0.01, "40 to train")):
        with pytest.raises(UserError, match=rf"val-fraction: {fraction} of 40 .* leaves {message}"):
            prepared("image_folder", out="new", val_fraction=fraction)


def test_what_is_left_out_of_folders_is_said(tmp_path: Path, prepared: Prepare) -> None:
    root = tmp_path / "in"
    for kind in ("JPEG", "PNG", "WEBP"):
        folders(root, "x", per_class=1, kind=kind)
    for name in ("stray.JPG", "other.png", ".hidden.jpg", "readme.txt"):
        (root / name).write_bytes(archives.jpeg_bytes(7))
    for hidden in (".ipynb_checkpoints", "x/.ipynb_checkpoints", "x/deep/.cache/more"):
        (root / hidden).mkdir(parents=True)
        (root / hidden / "copy.jpg").write_bytes(archives.jpeg_bytes(7))
    (root / "x/deep/seen.jpg").write_bytes(archives.jpeg_bytes(8))
    made = prepared("image_folder", val_fraction=0)
    assert made.num_samples == {"train": 4}
    assert made.notes == (
        f"{root}: left out, beside the class folders: 1 .jpg, 1 .png",
        "images of several formats (2 .jpg, 1 .png, 1 .webp) are all stored as .jpg; "
        "decoders look at the content",
    )
    check_against_reader(made, "train", num_samples=4)


def test_names_that_are_not_utf8(tmp_path: Path, prepared: Prepare) -> None:
    odd = os.fsdecode(b"\xe9")
    folders(tmp_path / odd, "x")
    (tmp_path / odd / "x" / f"0000{odd}.jpg").write_bytes(archives.jpeg_bytes(3))
    (tmp_path / odd / "x" / f"left.{odd}").write_text("no image")
    made = prepared("image_folder", source=odd, val_fraction=0)
    assert made.num_samples == {"train": 3}
    assert made.notes == (f"{tmp_path}/\\udce9: left out, no images: 1 .\\udce9",)
    (tmp_path / odd / odd).mkdir()
    with pytest.raises(UserError, match=r"\\udce9: the name of a class has to be UTF-8; rename"):
        prepared("image_folder", source=odd, out="new", val_fraction=0)


@pytest.mark.parametrize("target", ["in", "in/x", "in/y"])
def test_links_that_multiply_samples_are_refused(
    tmp_path: Path, prepared: Prepare, target: str
) -> None:
    folders(tmp_path / "kept")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x").symlink_to(tmp_path / "kept/x")
    (tmp_path / "in/y").mkdir()
    (tmp_path / "in/y/one.jpg").symlink_to(tmp_path / "kept/y/0000.jpg")
    # Links to images elsewhere are followed.
    made = prepared("image_folder", val_fraction=0)
    assert made.class_counts == {"train": (2, 1)}
    (tmp_path / "in/y/again").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=r"in/.*: the same folder as .*/in/.* remove the link"):
        prepared("image_folder", out="new", val_fraction=0)


# Damage --------------------------------------------------------------------------------------


def changed(name: str, change: Callable[[bytes], bytes]) -> Change:
    """Changes the content of a file, inside the gzip where it is one of MNIST."""

    def damage(folder: Path) -> None:
        path = folder / name
        content = path.read_bytes()
        if name.endswith("ubyte.gz"):
            path.write_bytes(gzip.compress(change(gzip.decompress(content))))
        else:
            path.write_bytes(change(content))

    return damage


def raw(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def bit_flipped(content: bytes) -> bytes:
    return content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]  # in the checksum of a gzip


def images_without_labels(folder: Path) -> None:
    labels = archives.idx_bytes(archives.mnist_arrays(59, 0)[1])
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


LABELS, IMAGES = "train-labels-idx1-ubyte.gz", "train-images-idx3-ubyte.gz"
MNIST: list[tuple[Change, str]] = [
    (raw(IMAGES, lambda content: content[:-3000]), rf"{IMAGES}: damaged or cut short"),
    (raw(IMAGES, bit_flipped), rf"{IMAGES}: damaged or cut short: CRC"),
    (changed(IMAGES, lambda content: content[:-1]), r"cut short: 1 bytes or more are missing"),
    (changed(LABELS, lambda content: content + b"\0"), r"more follows than its header says"),
    (changed(IMAGES, lambda content: b"\0\0\x0d" + content[3:]), r"begins with 00 00 0d 03, not"),
    (changed(LABELS, lambda content: content[:-1] + b"\x0a"), r"label 10, but the classes are 0"),
    (lambda folder: (folder / LABELS).unlink(), r"holds none of train-labels-idx1-ubyte, train"),
    (images_without_labels, rf"60 images, but {LABELS} has 59 labels"),
]


def cifar(**files: bytes | None) -> Change:
    """Writes the archive with other files, or without them."""

    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        new = {f"cifar-10-batches-py/{name}": content for name, content in files.items()}
        kept = {k: v for k, v in (archives.cifar10_files() | new).items() if v is not None}
        archives.write_cifar(folder / "cifar-10-python.tar.gz", kept)

    return write


def batch(**changes: Any) -> Change:
    content = {"labels": [0, 1], "data": archives.cifar_arrays(2, 0)} | changes
    return cifar(data_batch_3=archives.python2_pickle(content))


def of_the_published_size(folder: Path) -> None:
    os.truncate(folder / "cifar-10-python.tar.gz", 170498071)


ARCHIVE = "cifar-10-python.tar.gz"
CIFAR: list[tuple[Change, str]] = [
    (cifar(test_batch=None), "cifar-10-batches-py/test_batch missing"),
    (raw(ARCHIVE, lambda content: content[:-20000]), "damaged or cut short"),
    (raw(ARCHIVE, bit_flipped), "damaged or cut short: CRC check failed"),
    (cifar(data_batch_3=b"\x80\x02}q"), "data_batch_3: damaged pickle"),
    (cifar(data_batch_3=archives.python2_pickle([1])), "data_batch_3: holds no dict"),
    (batch(labels=[0]), "data_batch_3: 2 images, but 1 labels"),
    (batch(labels=["a", "b"]), "data_batch_3: no list of labels"),
    (batch(labels=[0, 10]), "train: labels 0 … 10, but the archive names 10"),
    (batch(data=archives.cifar_arrays(2, 0)[:, :-3]), "data_batch_3: no array of 3072 bytes an"),
    (of_the_published_size, "it has the size of the published archive but the md5"),
]


def rewritten(**changes: Any) -> Change:
    def write(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        archives.write_imagenet(folder, **changes)

    return write


def without_inner_header(content: bytes) -> bytes:
    start = content.index(b"n01440764_26.JPEG")
    return content[:start] + bytes(512) + content[start + 512 :]


TRAIN, VAL = archives.imagenet_train_files(), archives.imagenet_val_files()
CLIMBING = TRAIN | {"n01440764.tar": archives.tar_bytes({"../../n01440764_1.JPEG": b"x"})}
TRAIN_TAR = "ILSVRC2012_img_train.tar"
IMAGENET: list[tuple[Change, str]] = [
    (raw(TRAIN_TAR, lambda content: content[:-30000]), r"img_train.tar: (cut short|not a whole)"),
    (raw(TRAIN_TAR, without_inner_header), r"img_train.tar: damaged: no valid header at byte \d+"),
    (rewritten(kit=archives.imagenet_kit(per_class=8)), r"n02119789.tar: 7 images, but the dev"),
    (rewritten(train=dict(list(TRAIN.items())[:2])), r"1 of 3 classes are missing, such as n02100"),
    (rewritten(val=dict(list(VAL.items())[:4])), r"1 of 5 images are missing, such as number 5"),
    (rewritten(train=TRAIN | {"n09999999.tar": b""}), r"n09999999.tar: there a second time, or no"),
    (rewritten(train=CLIMBING), r"'../../n01440764_1.JPEG' is no image of this class"),
    (rewritten(kit=archives.imagenet_kit()[:-2]), r"devkit_t12.tar.gz: damaged or cut short"),
    (rewritten(kit=bit_flipped(archives.imagenet_kit())), r"devkit_t12.tar.gz: damaged or cut"),
    (rewritten(kit=archives.imagenet_kit(meta=b"")), r"not as published: MatReadError"),
    (lambda folder: (folder / "ILSVRC2012_img_val.tar").unlink(), r"nor ILSVRC2012_img_val.tar"),
]


def split_folders(root: Path) -> None:
    for split in ("train", "val"):
        folders(root / split)


FOLDERS: list[tuple[Change, str]] = [
    (raw("train/x/0001.jpg", lambda content: content[:200]), r"x/0001.jpg: damaged or not whole"),
    (raw("train/y/0000.jpg", lambda content: b"<html>404"), r"y/0000.jpg: damaged or not whole"),
    (lambda root: (root / "train/empty").mkdir(), r"train/empty: holds no images"),
    (lambda root: folders(root / "val", "z"), r"val: classes that training does not have: z"),
    (
        lambda root: (root / "train/x/0009.TIFF").write_bytes(b"II*\0"),
        r"0009.TIFF: images ending in .tiff cannot be decoded; convert them",
    ),
    (
        lambda root: (root / "train/x/gone.jpg").symlink_to("nowhere"),
        r"source: .*gone.jpg: cannot be read: No such file",
    ),
]
INPUTS: dict[str, tuple[Change, list[tuple[Change, str]]]] = {
    "mnist": (archives.write_mnist, MNIST),
    "cifar10": (cifar(), CIFAR),
    "imagenet": (archives.write_imagenet, IMAGENET),
    "image_folder": (split_folders, FOLDERS),
}


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [(name, *case) for name, (_, cases) in INPUTS.items() for case in cases],
)
def test_damaged_input_is_named(
    tmp_path: Path, prepared: Prepare, name: str, damage: Change, message: str
) -> None:
    INPUTS[name][0](tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        prepared(name)
    assert not (tmp_path / "out").exists()


def test_folders_need_to_know_the_validation_split(tmp_path: Path, prepared: Prepare) -> None:
    folders(tmp_path / "in/train", "x")
    from_folder = functools.partial(prepared, "image_folder")
    with pytest.raises(UserError, match=r"train: has no validation split beside it"):
        from_folder()
    folders(tmp_path / "in/val", "x")
    with pytest.raises(UserError, match=r"val-fraction: without effect, .*/in/val is"):
        from_folder(val_fraction=0.1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: has no subfolders; each class needs one"):
        from_folder(source="empty", val_fraction=0.1)


def test_hostile_pickle_runs_nothing(tmp_path: Path, prepared: Prepare) -> None:
    victim = tmp_path / "victim"
    cifar(data_batch_3=archives.hostile_pickle(victim))(tmp_path / "in")
    with pytest.raises(UserError, match=r"names \w+.\w+, which is no plain value: refused"):
        prepared("cifar10")
    assert not victim.exists()


def test_pickles_that_are_more_than_plain_values_are_refused() -> None:
    array = archives.python2_pickle(archives.cifar_arrays(1, 0))
    for content in (
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"(S'true'\nios\nsystem\n.",
        # An array class of its own, an array of objects, and a shape that its bytes do not fill.
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tU\x01btR.",
        b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.",
        array.replace(b"J\x00\x0c\x00\x00", b"J\x00\x0d\x00\x00"),
        b"\x80\x02P0\n.",
    ):
        with pytest.raises(ValueError, match=r"."):
            load_plain_pickle(content)
    # Each list names the one before it ten times: 10^5 parts, if they were copied.
    content = b"\x80\x02]q\x00"
    for place in range(5):
        content += b"]q" + bytes([place + 1]) + b"(" + (b"h" + bytes([place])) * 10 + b"e"
    value = load_plain_pickle(content + b".")
    assert value[0] is value[9]
    with pytest.raises(ValueError, match=r"damaged pickle: RecursionError"):
        load_plain_pickle(b"\x80\x02]q\x00h\x00a.")
    pixels = archives.cifar_arrays(2, 5)
    value = load_plain_pickle(archives.python2_pickle({"data": pixels, "labels": [1, -2, None]}))
    assert value[b"labels"] == [1, -2, None]
    assert np.array_equal(value[b"data"], pixels)
