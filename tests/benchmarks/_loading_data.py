"""The data that `loading_speed.py` loads: the same files as shards and in folders."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from data_pipelines.index import SampleIndex, index_shards

NUM_SHARDS = 4
_NUM_CLASSES = 10
# About that of ImageNet's photographs; (width, height).
_PHOTOGRAPH_SIZE = (500, 375)
_PHOTOGRAPH_BYTES = 110_000
_SMALL_SIZE = 32
_SMALL_QUALITY = 95

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageFiles:
    """Encoded images.

    Attributes:
        payloads: The bytes of each file.
        labels: The class of each.
        ending: Of their names, without the dot.
        description: What they are, for people.
    """

    payloads: Sequence[bytes]
    labels: Sequence[int]
    ending: str
    description: str


@dataclass(frozen=True)
class StoredImages:
    """Images on disk, in all the layouts that the contenders read.

    Attributes:
        index: The shards with their index.
        folder: Holds a folder for each class.
        ending: Of the names of the files, without the dot.
    """

    index: SampleIndex
    folder: Path
    ending: str

    @property
    def num_samples(self) -> int:
        """How many images there are."""
        return self.index.num_samples

    @property
    def shards(self) -> list[str]:
        """The paths of the shards."""
        return [str(self.index.shard_path(number)) for number in range(NUM_SHARDS)]


def photograph_files(num_samples: int) -> ImageFiles:
    """Returns JPEG files of random parts of photographs, mirrored half of the time.

    They are encoded to about 110 KB, a fifth more or less, each with a quality of its own.
    """
    photographs, described = _photographs()
    rng = np.random.default_rng(0)
    payloads = []
    for number in range(num_samples):
        image = _random_part(photographs[number % len(photographs)], rng)
        payloads.append(_encoded_to(image, int(rng.uniform(0.8, 1.2) * _PHOTOGRAPH_BYTES)))
    sizes = [len(payload) / 1000 for payload in payloads]
    width, height = _PHOTOGRAPH_SIZE
    return ImageFiles(
        payloads,
        _labels(num_samples),
        "jpg",
        f"{num_samples} JPEG files of {width} x {height} pixels and {min(sizes):.0f} … "
        f"{max(sizes):.0f} KB, mean {np.mean(sizes):.0f} KB, cut from {described}",
    )


def small_files(num_samples: int, *, split: Path | None) -> ImageFiles:
    """Returns images of the size of CIFAR's.

    Args:
        num_samples: How many.
        split: A prepared split to take them from, in the order of its shards; without, they are cut
            from photographs.

    Raises:
        ValueError: The split has too few samples.
    """
    if split is not None:
        return _files_of_split(split, num_samples)
    photographs, described = _photographs()
    rng = np.random.default_rng(0)
    payloads = []
    for number in range(num_samples):
        image = photographs[number % len(photographs)]
        top, left = (int(rng.integers(side - _SMALL_SIZE)) for side in image.shape[:2])
        stream = io.BytesIO()
        cut = Image.fromarray(image[top : top + _SMALL_SIZE, left : left + _SMALL_SIZE])
        cut.save(stream, "JPEG", quality=_SMALL_QUALITY)
        payloads.append(stream.getvalue())
    return ImageFiles(
        payloads,
        _labels(num_samples),
        "jpg",
        f"{num_samples} JPEG files of {_SMALL_SIZE} x {_SMALL_SIZE} pixels cut from {described}",
    )


def store(files: ImageFiles, directory: Path) -> StoredImages:
    """Writes the files as shards, with our index and with timm's, and as a folder for each class.

    Args:
        files: What to write; as many as fill all shards alike.
        directory: Where to; is made.
    """
    num_samples = len(files.payloads)
    assert num_samples % NUM_SHARDS == 0, num_samples
    folder, shards = directory / "folder", directory / "shards"
    shards.mkdir(parents=True)
    per_shard = num_samples // NUM_SHARDS
    pattern = str(shards / "train-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0, mtime=0) as writer:
        for number, (payload, label) in enumerate(zip(files.payloads, files.labels, strict=True)):
            key = f"{number:06d}"
            writer.write({"__key__": key, files.ending: payload, "cls": str(label).encode()})
            class_folder = folder / f"class{label:03d}"
            class_folder.mkdir(parents=True, exist_ok=True)
            (class_folder / f"{key}.{files.ending}").write_bytes(payload)
    paths = sorted(shards.glob("*.tar"))
    names = [path.name for path in paths]
    split = {"name": "train", "num_samples": num_samples, "filenames": names}
    split["shard_lengths"] = [per_shard] * NUM_SHARDS
    (shards / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    index = index_shards(
        paths,
        split="train",
        num_classes=None,
        preshuffle_seed=0,
        created_by="a benchmark",
        expected_samples=num_samples,
    )
    return StoredImages(index, folder, files.ending)


def _photographs() -> tuple[list[Pixels], str]:
    """Returns photographs, RGB (height, width, 3), and where they are from."""
    try:
        from decoders import photographs

        return photographs(), "photographs of scikit-image and scikit-learn"
    except (ImportError, OSError) as error:
        images: list[Pixels] = load_sample_images().images
        return images, f"scikit-learn's two photographs, scikit-image's are missing ({error})"


def _labels(num_samples: int) -> list[int]:
    return [number % _NUM_CLASSES for number in range(num_samples)]


def _random_part(image: Pixels, rng: np.random.Generator) -> Image.Image:
    """Returns a part of the aspect ratio of `_PHOTOGRAPH_SIZE`, resized to it."""
    full_height, full_width = image.shape[:2]
    aspect = _PHOTOGRAPH_SIZE[0] / _PHOTOGRAPH_SIZE[1]
    width = int(min(full_width, full_height * aspect) * rng.uniform(0.75, 1))
    height = int(width / aspect)
    top = int(rng.integers(full_height - height + 1))
    left = int(rng.integers(full_width - width + 1))
    part = image[top : top + height, left : left + width]
    mirrored = part[:, ::-1] if rng.integers(2) else part
    pixels = Image.fromarray(np.ascontiguousarray(mirrored))
    return pixels.resize(_PHOTOGRAPH_SIZE, Image.Resampling.LANCZOS)


def _encoded_to(image: Image.Image, num_bytes: int) -> bytes:
    """Returns the JPEG of the quality of 60 … 100 that comes nearest to a size."""
    low, high = 60, 100
    while low < high:
        quality = (low + high) // 2
        if len(_jpeg(image, quality)) < num_bytes:
            low = quality + 1
        else:
            high = quality
    nearest = (_jpeg(image, quality) for quality in (low - 1, low))
    return min(nearest, key=lambda payload: abs(len(payload) - num_bytes))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _files_of_split(split: Path, num_samples: int) -> ImageFiles:
    shards = sorted(map(str, split.glob("*.tar")))
    if not shards:
        raise ValueError(f"{split}: has no shards; give a prepared split, such as DIR/train")
    samples = list(islice(webdataset.WebDataset(shards, shardshuffle=False), num_samples))
    if len(samples) < num_samples:
        raise ValueError(f"{split}: {len(samples)} samples, but {num_samples} were asked for")
    ending = next((each for each in ("jpg", "png", "npy") if each in samples[0]), None)
    if ending is None:
        raise ValueError(f"{split}: its samples have no jpg, png or npy")
    payloads = [sample[ending] for sample in samples]
    described = f"{num_samples} .{ending} files of {split.parent.name}/{split.name}"
    if ending == "npy":
        # Arrays as they are would be read without decoding by some of the contenders only.
        payloads, ending = list(map(_png, payloads)), "png"
        described += ", as PNG"
    return ImageFiles(payloads, [int(sample["cls"]) for sample in samples], ending, described)


def _png(array_file: bytes) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.load(io.BytesIO(array_file), allow_pickle=False)).save(stream, "PNG")
    return stream.getvalue()
