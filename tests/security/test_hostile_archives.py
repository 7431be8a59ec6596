"""Archives to prepare data from, and weights, that were made to take the memory or the disk."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_bound import bounded
from safetensors.torch import save_file

from data_pipelines import prepare
from data_pipelines.decoding import SampleDecoder
from data_pipelines.errors import UserError
from data_pipelines.preparation.gzipped_tars import gzipped_files
from data_pipelines.preparation.idx_files import convert_idx_images, read_idx_labels
from data_pipelines.preparation.imagenet import IMAGENET
from data_pipelines.preparation.recipe import PreparationOptions
from data_pipelines.preparation.safe_pickle import load_plain_pickle
from data_pipelines.progress import no_progress
from msam_scale.models import ModelRequest, build_model

_CIFAR = "cifar-10-batches-py"
_KIT = "ILSVRC2012_devkit_t12/data"


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def _gzipped_zeros(path: Path, *begin: bytes, num_bytes: int) -> None:
    """Writes what unpacks to `begin` and then zeros, a thousandth of them in size."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in begin:
            file.write(part)
        for _ in range(num_bytes >> 20):
            file.write(bytes(1 << 20))


_ARCHIVES = {
    "a file of gigabytes": (_header(f"{_CIFAR}/test_batch", 3 << 30), "not a file of the expected"),
    "a header of gigabytes": (
        _header("x", 2 << 30, tarfile.XHDTYPE),
        "extended header of 2147483648 bytes",
    ),
    "a name of gigabytes": (
        _header("x", 2 << 30, tarfile.GNUTYPE_LONGNAME),
        "extended header of 2147483648 bytes",
    ),
    "a file of exabytes": (_header("x", 1 << 62), "unpacks to more than"),
    "a negative size": (_header("x", -(1 << 20)), "has -1048576 bytes"),
    "a link": (_header(f"{_CIFAR}/test_batch", 0, tarfile.SYMTYPE), "not a file of the expected"),
}


@pytest.mark.parametrize("kind", _ARCHIVES)
def test_hostile_archives_are_refused(kind: str, tmp_path: Path) -> None:
    begin, words = _ARCHIVES[kind]
    archive = tmp_path / "cifar-10-python.tar.gz"
    _gzipped_zeros(archive, begin, num_bytes=4 << 20)
    with bounded(), pytest.raises(UserError, match=words):
        prepare("cifar10", out=tmp_path / "out", source=archive)
    assert not (tmp_path / "out").exists()


def test_archives_that_never_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipelines.preparation.gzipped_tars._MOST_UNPACKED_BYTES", 8 << 20)
    archive = tmp_path / "zeros.tar.gz"
    _gzipped_zeros(archive, _header("x", 0), num_bytes=16 << 20)
    with bounded(), pytest.raises(UserError, match=r"zeros.tar.gz: unpacks to more than 8388608"):
        list(gzipped_files(archive, name=str(archive), is_wanted=lambda name: True, most_bytes=9))


def _matlab(num_bytes: int) -> bytes:
    packed = zlib.compress(bytes(num_bytes), 1)
    return bytes(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed


@pytest.mark.parametrize(
    ("content", "size", "words"),
    [
        (b"", 3 << 30, "not a file of the expected size"),
        (_matlab(80 << 20), None, "unpacks to more than 67108864 bytes"),
        (b"MATLAB" * 100, None, "not as published"),
    ],
)
def test_hostile_development_kits_are_refused(
    content: bytes, size: int | None, words: str, tmp_path: Path
) -> None:
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        (tmp_path / name).write_bytes(bytes(10240))
    labels = b"1\n"
    members = [
        _header(f"{_KIT}/ILSVRC2012_validation_ground_truth.txt", len(labels)),
        labels.ljust(512, b"\0"),
        _header(f"{_KIT}/meta.mat", len(content) if size is None else size),
        content + bytes(-len(content) % 512),
    ]
    _gzipped_zeros(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", *members, num_bytes=1 << 20)
    options = PreparationOptions(source=tmp_path, seed=0)
    with bounded(most_bytes=192 << 20), pytest.raises(UserError, match=words):
        IMAGENET.open(options, tmp_path / "scratch", no_progress)


def test_hostile_idx_files_are_refused(tmp_path: Path) -> None:
    images, labels = tmp_path / "images.gz", tmp_path / "labels"
    sizes = struct.pack(">III", (1 << 32) - 1, (1 << 32) - 1, (1 << 32) - 1)
    images.write_bytes(gzip.compress(b"\x00\x00\x08\x03" + sizes))
    with bounded(), pytest.raises(UserError, match="cut short or damaged: says that it holds"):
        convert_idx_images(images, out=tmp_path / "out.npy")
    with labels.open("wb") as file:
        file.write(b"\x00\x00\x08\x01" + struct.pack(">I", (1 << 32) - 1))
        file.truncate(1 << 33)  # takes no room
    with bounded(), pytest.raises(UserError, match="more than any such set"):
        read_idx_labels(labels, num_classes=10)
    assert not (tmp_path / "out.npy").exists()


def test_hostile_class_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "cats"
    folder.mkdir(parents=True)
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)  # takes no room
    source = tmp_path / "images"
    with bounded(), pytest.raises(UserError, match=r"huge.jpg: no file of at most \d+ bytes"):
        prepare("image_folder", out=tmp_path / "out", source=source, val_fraction=0)
    (folder / "huge.jpg").unlink()
    os.mkfifo(folder / "pipe.jpg")
    with bounded(), pytest.raises(UserError, match=r"pipe.jpg: no file of at most \d+ bytes"):
        prepare("image_folder", out=tmp_path / "out", source=source, val_fraction=0)


def _safetensors(header: bytes, *, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


def _tensor(shape: list[int], end: int, kind: str = "F32") -> bytes:
    return json.dumps({"x": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}}).encode()


_WEIGHTS = {
    "a huge header": _safetensors(b"{}", size=1 << 62),
    "a huge tensor": _safetensors(_tensor([1 << 40], 1 << 42)),
    "a shape that wraps": _safetensors(_tensor([1 << 33, 1 << 33], 0)),
    "another type": _safetensors(_tensor([1], 4, "OBJECT")),
    "depth": _safetensors(b"[" * 10_000),
    "a pickle": b"\x80\x02cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize(("source", "name"), [("timm", "resnet10t"), ("msam_scale", "wrn-10-1")])
def test_hostile_weights_are_refused(source: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    request = ModelRequest(name=name, num_classes=2, num_channels=3, weights=path)
    for content in _WEIGHTS.values():
        path.write_bytes(content)
        with bounded(), pytest.raises(UserError, match=r"model.weights: .*cannot be read"):
            build_model(source, request, seed=0)


def test_heads_without_a_shape_and_pipes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"fc.weight": torch.tensor(1.0), "conv1.0.weight": torch.zeros(0, 1 << 40)}, path)
    request = ModelRequest(name="resnet10t", num_classes=2, num_channels=3, weights=path)
    with bounded(), pytest.raises(UserError, match=r"model.weights: .*does not fit"):
        build_model("timm", request, seed=0)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"model.weights: .*is a pipe or a device"):
        build_model("timm", request, seed=0)


def test_arrays_and_pickles_are_as_large_as_their_bytes() -> None:
    """A checked array file is a view of what was read: no shape can make it larger."""
    stream = io.BytesIO()
    np.save(stream, np.zeros((1, 4), "<i4"))
    content = stream.getvalue().replace(b"(1, 4)", b"(9, 4)")
    decoder = SampleDecoder.for_columns(["tokens.npy", "cls"])
    with pytest.raises(ValueError, match=r"takes 144 bytes, but 16 follow"):
        decoder.decode({"tokens.npy": content, "cls": b"0"})
    # A place in the memo that the unpickler would take gigabytes to have.
    with bounded(), pytest.raises(ValueError, match=r"asks for place 1073741823 of the memo"):
        load_plain_pickle(b"\x80\x02K\x01r\xff\xff\xff\x3f.")
