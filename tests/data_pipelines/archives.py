"""Small archives of exactly the published layouts, for the tests of preparation."""

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# MNIST -----------------------------------------------------------------------------------------


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An IDX file: http://yann.lecun.com/exdb/mnist/."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_mnist(folder: Path, *, num_train: int = 60, num_test: int = 20, gz: bool = True) -> None:
    folder.mkdir()
    for stem, number, seed in (("train", num_train, 0), ("t10k", num_test, 1)):
        images, labels = mnist_arrays(number, seed)
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            raw = idx_bytes(content)
            name = f"{stem}-{kind}-ubyte"
            if gz:
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
            else:
                (folder / name).write_bytes(raw)


def mnist_arrays(number: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
    return images, (np.arange(number) % 10).astype(np.uint8)


# CIFAR -----------------------------------------------------------------------------------------


def python2_pickle(value: Any) -> bytes:
    """What `cPickle.dump(value, file, 2)` of Python 2 writes, with its 8-bit strings."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, str):
        value = value.encode("ascii")
    if isinstance(value, bytes):
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_python2, value)) + b"t"
    if isinstance(value, dict):
        items = b"".join(_python2(key) + _python2(each) for key, each in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, np.ndarray):
        dtype = _global("numpy", "dtype") + _python2(("u1", 0, 1)) + b"R"
        dtype += _python2((3, "|", None, None, None, -1, -1, 0)) + b"b"
        shape = _python2(value.shape)
        made = _global("numpy.core.multiarray", "_reconstruct")
        made += b"(" + _global("numpy", "ndarray") + _python2((0,)) + _python2("b") + b"tR"
        return (
            made + b"(" + _python2(1) + shape + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"
        )
    raise TypeError(type(value))


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode("ascii")


def cifar_arrays(number: int, seed: int) -> NDArray[np.uint8]:
    """Rows of 3072 bytes: a plane of red, one of green, one of blue."""
    return np.random.default_rng(seed).integers(0, 256, (number, 3072), dtype=np.uint8)


def cifar10_files(*, per_batch: int = 12) -> dict[str, bytes]:
    files: dict[str, Any] = {
        "batches.meta": {
            "num_cases_per_batch": per_batch,
            "label_names": [f"class{number}" for number in range(10)],
            "num_vis": 3072,
        }
    }
    for number in range(1, 7):
        name = f"data_batch_{number}" if number < 6 else "test_batch"
        files[name] = {
            "batch_label": f"batch {number}",
            "labels": [(number + each) % 10 for each in range(per_batch)],
            "data": cifar_arrays(per_batch, number),
            "filenames": [f"picture_{each:06d}.png" for each in range(per_batch)],
        }
    content = {f"cifar-10-batches-py/{name}": python2_pickle(each) for name, each in files.items()}
    return content | {"cifar-10-batches-py/readme.html": b"<meta/>"}


def cifar100_files() -> dict[str, bytes]:
    files: dict[str, dict[str, Any]] = {
        "meta": {
            "fine_label_names": [f"fine{number:02d}" for number in range(100)],
            "coarse_label_names": [f"coarse{number}" for number in range(20)],
        }
    }
    for name, number in (("train", 200), ("test", 100)):
        files[name] = {
            "filenames": [f"picture_{each:06d}.png" for each in range(number)],
            "batch_label": "training batch 1 of 1",
            "fine_labels": [each % 100 for each in range(number)],
            "coarse_labels": [each % 20 for each in range(number)],
            "data": cifar_arrays(number, number),
        }
    return {f"cifar-100-python/{name}": python2_pickle(each) for name, each in files.items()}


class Hostile:
    """Pickled, it writes a file when an ordinary unpickler reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.path, "run")


def hostile_pickle(path: Path) -> bytes:
    return pickle.dumps({b"data": Hostile(path), b"labels": [0]}, protocol=2)


# tars ------------------------------------------------------------------------------------------


def tar_bytes(files: Mapping[str, bytes], *, mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write_cifar(path: Path, files: Mapping[str, bytes]) -> None:
    path.write_bytes(tar_bytes(files, mode="w:gz"))


# images ----------------------------------------------------------------------------------------


def jpeg_bytes(seed: int, *, size: tuple[int, int] = (12, 9), kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((size[0] * 4, size[1] * 4)).save(stream, kind)
    return stream.getvalue()


def write_class_folders(
    folder: Path, *, class_names: Sequence[str], per_class: int, seed: int, kind: str = "JPEG"
) -> None:
    ending = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
    for label, name in enumerate(class_names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            content = jpeg_bytes(seed + 1000 * label + number, kind=kind)
            (folder / name / f"{number:04d}.{ending}").write_bytes(content)


# ImageNet --------------------------------------------------------------------------------------

WORDNET_IDS = {1: "n02119789", 2: "n01440764", 3: "n02100735"}
INNER_NODE = (4, "n00001740")
VALIDATION = (3, 1, 2, 2, 1)


def imagenet_train_files(*, per_class: int = 7) -> dict[str, bytes]:
    return {
        f"{wordnet_id}.tar": tar_bytes(
            {
                f"{wordnet_id}_{number * 13}.JPEG": jpeg_bytes(100 * kit_number + number)
                for number in range(per_class)
            }
        )
        for kit_number, wordnet_id in WORDNET_IDS.items()
    }


def imagenet_val_files() -> dict[str, bytes]:
    return {
        f"ILSVRC2012_val_{number:08d}.JPEG": jpeg_bytes(9000 + number)
        for number in range(1, len(VALIDATION) + 1)
    }


def imagenet_kit(*, per_class: int = 7, meta: bytes | None = None) -> bytes:
    from scipy.io import savemat  # takes time that other processes need not spend

    leaves = [(number, name, 0, per_class) for number, name in WORDNET_IDS.items()]
    rows = [
        (number, name, f"words of {name}", "gloss", num_children, np.zeros(0), 1, num_images)
        for number, name, num_children, num_images in [*leaves, (*INNER_NODE, 3, 0)]
    ]
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children"]
    fields += ["wordnet_height", "num_train_images"]
    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in fields])
    for number, row in enumerate(rows):
        synsets[number, 0] = row
    stream = io.BytesIO()
    savemat(stream, {"synsets": synsets})
    folder = "ILSVRC2012_devkit_t12"
    return tar_bytes(
        {
            f"{folder}/readme.txt": b"ILSVRC2012",
            f"{folder}/data/meta.mat": stream.getvalue() if meta is None else meta,
            f"{folder}/data/ILSVRC2012_validation_ground_truth.txt": "".join(
                f"{number}\n" for number in VALIDATION
            ).encode("ascii"),
        },
        mode="w:gz",
    )


def write_imagenet(
    folder: Path,
    *,
    train: Mapping[str, bytes] | None = None,
    val: Mapping[str, bytes] | None = None,
    kit: bytes | None = None,
) -> None:
    folder.mkdir()
    train_files = imagenet_train_files() if train is None else train
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(train_files))
    val_files = imagenet_val_files() if val is None else val
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(val_files))
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(imagenet_kit() if kit is None else kit)


# texts -----------------------------------------------------------------------------------------

WORDS = "the a cat dog sat ran on under mat house very fast slow and or red".split()  # noqa: SIM905


def sentence(seed: int, *, num_words: int = 6) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, num_words))


def write_tokenizer(folder: Path, **settings: Any) -> None:
    """A BERT tokenizer whose vocabulary are the words above, saved as the library saves one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **settings,
    ).save_pretrained(folder)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_film_reviews(path: Path, lines: Sequence[str]) -> None:
    """VaderSentiment's source distribution; all lines but the last end with CR LF, as published."""
    text = "\r\n".join(lines).encode()
    ratings = {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": text}
    inner = tar_bytes({"hutto_ICWSM_2014/README.txt": b"x", **ratings}, mode="w:gz")
    name = path.name.removesuffix(".tar.gz")
    files = {
        f"{name}/setup.py": b"raise SystemExit('never run')",
        f"{name}/additional_resources/hutto_ICWSM_2014.tar.gz": inner,
    }
    path.write_bytes(tar_bytes(files, mode="w:gz"))
