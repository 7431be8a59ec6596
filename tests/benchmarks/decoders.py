"""Measures JPEG decoders and whole transforms against each other, on real photographs.

    python tests/benchmarks/decoders.py [--rounds 9]

Needs scikit-image besides the test requirements, for its photographs. They are encoded to about
110 KB at the size they have, which is that of ImageNet. All contenders run in turns, in a new order
each round, in one thread, so that other work on the machine falls on all of them; printed is the
median CPU time of an image and how many times faster that is than the first line.
"""

import argparse
import io
import random
import time
from collections.abc import Callable, Sequence
from statistics import median

import cv2
import numpy as np
import simplejpeg
import skimage.data
import torch
import torchvision.io
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.transforms import v2

from data_pipelines.decoding.compressed_images import decode_compressed_image
from data_pipelines.order import augmentation_rng
from data_pipelines.transforms import augmentation_words, normalise, transform_preset

_TARGET_BYTES = 110_000
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_REPEATS = 4

# A contender works off all images once.
Contender = Callable[[], object]


def photographs() -> list[NDArray[np.uint8]]:
    """Returns photographs, RGB, (height, width, 3)."""
    loaders = ("astronaut", "chelsea", "coffee", "rocket")
    left, right, _ = skimage.data.stereo_motorcycle()
    images = [getattr(skimage.data, name)() for name in loaders]
    return [*images, left, right, *load_sample_images().images]


def encoded(image: NDArray[np.uint8]) -> bytes:
    """Returns the JPEG of the quality that comes nearest to 110 KB."""
    files = []
    for quality in range(60, 101):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        files.append(stream.getvalue())
    return min(files, key=lambda file: abs(len(file) - _TARGET_BYTES))


def decoders(files: Sequence[bytes]) -> dict[str, Contender]:
    """Returns bytes to RGB by each library."""
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    arrays = [np.frombuffer(file, np.uint8) for file in files]

    def by_pillow(file: bytes) -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return {
        "Pillow": lambda: [by_pillow(file) for file in files],
        "torchvision": lambda: [torchvision.io.decode_jpeg(tensor) for tensor in tensors],
        "OpenCV": lambda: [cv2.imdecode(array, flags) for array in arrays],
        "simplejpeg": lambda: [simplejpeg.decode_jpeg(file) for file in files],
        "data_pipelines (simplejpeg, with checks)": lambda: [
            decode_compressed_image(file) for file in files
        ],
    }


def pipelines(files: Sequence[bytes]) -> dict[str, Contender]:
    """Returns bytes to a batch, by torchvision's usual recipe and by presets.

    Where the device normalises, workers are done when they have put the bytes in place.
    """
    presets = ("inception_tv", "inception_vit", "inception_sam")
    classic = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ]
    )
    on_bytes = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])
    normalise_bytes = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)])
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]

    def by_classic() -> torch.Tensor:
        opened = (Image.open(io.BytesIO(file)).convert("RGB") for file in files)
        return torch.stack([classic(image) for image in opened])

    def by_v2() -> torch.Tensor:
        decoded = (torchvision.io.decode_jpeg(tensor) for tensor in tensors)
        return normalise_bytes(torch.stack([on_bytes(image) for image in decoded]))

    def by_preset(name: str, *, normalises: bool) -> Contender:
        preset = transform_preset(name)

        def run() -> torch.Tensor:
            block = torch.empty((len(files), 224, 224, 3), dtype=torch.uint8)
            images = block.numpy()
            for number, file in enumerate(files):
                rng = augmentation_rng(0, 0, number)
                images[number] = preset.augment(decode_compressed_image(file), rng)
            return normalise(block, preset=preset, dtype=torch.float32) if normalises else block

        return run

    return {
        "torchvision, Pillow images": by_classic,
        "torchvision v2, bytes": by_v2,
        **{f"{name}, normalised here": by_preset(name, normalises=True) for name in presets},
        **{f"{name}, bytes for the device": by_preset(name, normalises=False) for name in presets},
    }


def small_images(num_images: int) -> dict[str, Contender]:
    """Returns resident 32 x 32 images to a normalised float batch."""
    astronaut = photographs()[0]
    places = np.random.default_rng(0).integers(0, 480, (num_images, 2))
    images = np.stack([astronaut[y : y + 32, x : x + 32] for y, x in places.tolist()])
    classic = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ]
    )
    preset = transform_preset("cifar_basic")
    batched = preset.augment_batch
    assert batched is not None
    ids = np.arange(num_images)

    def by_batch() -> torch.Tensor:
        words = augmentation_words(0, epochs=0, sample_ids=ids, num_words=batched.num_words)
        augmented = torch.from_numpy(batched.augment(images, words))
        return normalise(augmented, preset=preset, dtype=torch.float32)

    def by_image() -> torch.Tensor:
        single = [preset.augment(images[i], augmentation_rng(0, 0, i)) for i in range(num_images)]
        return normalise(torch.from_numpy(np.stack(single)), preset=preset, dtype=torch.float32)

    return {
        "torchvision, Pillow images": lambda: torch.stack(
            [classic(Image.fromarray(image)) for image in images]
        ),
        "cifar_basic, image by image": by_image,
        "cifar_basic, a batch at once": by_batch,
    }


def compare(title: str, contenders: dict[str, Contender], *, num_images: int, rounds: int) -> None:
    """Measures contenders in turns and prints a table."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    names = list(contenders)
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            start = time.process_time()
            for _ in range(_REPEATS):
                contenders[name]()
            seconds[name].append((time.process_time() - start) / (_REPEATS * num_images))
    first = median(seconds[next(iter(contenders))])
    print(f"\n{title}\n{'':42}{'us/image':>10}{'images/s':>10}{'ratio':>8}")
    for name, values in seconds.items():
        one = median(values)
        print(f"{name:42}{one * 1e6:10.1f}{1 / one:10.0f}{first / one:8.2f}")


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = [encoded(image) for image in photographs()]
    sizes = ", ".join(f"{len(file) // 1000}" for file in files)
    print(f"{len(files)} photographs of {sizes} KB")
    compare("decode", decoders(files), num_images=len(files), rounds=rounds)
    compare("decode, crop, flip", pipelines(files), num_images=len(files), rounds=rounds)
    compare("32 x 32, batch of 128", small_images(128), num_images=128, rounds=rounds)


if __name__ == "__main__":
    main()
