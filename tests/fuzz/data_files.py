"""Shards, indexes, images, archives and tables with damaged bytes, and indexes sealed again."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from harness import call, damage, damage_bytes, held, json_bytes
from PIL import Image

from data_pipelines import EvaluationLoader, SampleIndex, open_split, transform_preset
from data_pipelines.decoding import SampleDecoder
from data_pipelines.errors import UserError
from data_pipelines.index.format import IndexMeta, fingerprint_of
from data_pipelines.preparation.idx_files import read_idx_labels
from data_pipelines.preparation.safe_pickle import load_plain_pickle


def _picture(form: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((24, 20), 50).convert("RGB").save(stream, form)
    return stream.getvalue()


def _array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 4, 3), np.uint8))
    return stream.getvalue()


_IMAGES = {
    "jpg": _picture("JPEG"),
    "png": _picture("PNG"),
    "webp": _picture("WEBP"),
    "npy": _array(),
}
_LABELS = struct.pack(">II", 0x801, 4) + bytes([0, 1, 2, 1])
_PICKLE = pickle.dumps({b"data": np.zeros((3, 12), np.uint8), b"labels": [1, 2, 0]}, protocol=2)


class DataFiles:
    """Cases with copies of a small prepared data set, or of one file.

    Args:
        home: an empty folder.
        digits: prepared data.
    """

    def __init__(self, home: Path, digits: Path) -> None:
        self._home, self._digits = home, digits
        call("data", "check", str(digits))  # imports what is no case's memory
        self._kinds: list[Callable[[Path, Random], Callable[[], object]]] = [
            self._index,
            self._index,
            self._shard,
            self._shard,
            self._image,
            self._image,
            self._labels,
            self._pickle,
            self._archive,
        ]

    def __call__(self, random: Random) -> None:
        """Damages a file and reads it by what reads it."""
        case = self._home / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        read = random.choice(self._kinds)(case, random)
        with held(case):
            said = _refusal(read, UserError)
            assert "\n" not in said, said
            assert len(said) < 3000, said

    def _split(self, case: Path) -> Path:
        shutil.copytree(self._digits / "val", case / "data/val")
        shutil.copy(self._digits / "dataset.json", case / "data")
        return case / "data/val"

    def _index(self, case: Path, random: Random) -> Callable[[], object]:
        split = self._split(case)
        index = split / "index"
        path = random.choice([*index.iterdir(), case / "data/dataset.json"])
        if path.suffix == ".json" and random.randrange(2):
            content = json.loads(path.read_text())
            damage(content, random)
            path.write_bytes(json_bytes(content))
        elif path.suffix == ".npy" and random.randrange(2):
            table = np.load(path)
            field = random.choice(table.dtype.names)
            table[field][random.randrange(len(table))] = random.choice([0, 1, 2**31 - 1, 255])
            np.save(path, table)
        else:
            path.write_bytes(damage_bytes(path.read_bytes(), random))
        if random.randrange(2):
            _seal(index)
        return random.choice(
            [lambda: _read(split), lambda: call("data", "check", str(split.parent))]
        )

    def _shard(self, case: Path, random: Random) -> Callable[[], object]:
        split = self._split(case)
        path = random.choice(list(split.glob("*.tar")))
        path.write_bytes(damage_bytes(path.read_bytes(), random))
        if random.randrange(2):
            return random.choice(
                [lambda: _read(split), lambda: call("data", "check", str(split.parent))]
            )
        shutil.rmtree(split / "index")
        return lambda: call("data", "index", str(path))

    def _image(self, case: Path, random: Random) -> Callable[[], object]:
        column = random.choice(sorted(_IMAGES))
        payloads = {column: damage_bytes(_IMAGES[column], random), "cls": b"1"}
        if random.randrange(5) == 0:
            payloads["cls"] = damage_bytes(b"12", random)

        def read() -> None:
            decoder = SampleDecoder.for_columns([column, "cls"])
            said = _refusal(lambda: decoder.decode(payloads), ValueError)
            assert said.startswith("column .") or not said, said

        return read

    def _labels(self, case: Path, random: Random) -> Callable[[], object]:
        content = damage_bytes(_LABELS, random)
        path = case / "labels"
        path.write_bytes(gzip.compress(content) if random.randrange(2) else content)
        if random.randrange(3) == 0:
            path.write_bytes(damage_bytes(path.read_bytes(), random))
        return lambda: read_idx_labels(path, num_classes=10)

    def _pickle(self, case: Path, random: Random) -> Callable[[], object]:
        content = damage_bytes(_PICKLE, random)
        return lambda: _refusal(lambda: load_plain_pickle(content), ValueError)

    def _archive(self, case: Path, random: Random) -> Callable[[], object]:
        name, source = random.choice([("cifar10", "c.tar.gz"), ("mnist", "m")])
        path = case / source
        if name == "cifar10":
            path.write_bytes(damage_bytes(gzip.compress(bytes(1024) + _PICKLE), random))
        else:
            path.mkdir()
            for part in ("train", "t10k"):
                for what in ("images-idx3", "labels-idx1"):
                    (path / f"{part}-{what}-ubyte").write_bytes(damage_bytes(_LABELS, random))
        return lambda: call(
            "data", "prepare", name, "--source", str(path), "--out", str(case / "out")
        )


def _refusal(read: Callable[[], object], kind: type[Exception]) -> str:
    """What reading was refused with; empty where it was not."""
    try:
        read()
    except kind as error:
        return str(error) or kind.__name__
    return ""


def _seal(index: Path) -> None:
    """Gives an index the fingerprint that fits, where it can be had."""
    try:
        content: dict[str, Any] = json.loads((index / "meta.json").read_text())
        content["fingerprint"] = fingerprint_of(index, IndexMeta.model_validate(content))
        (index / "meta.json").write_text(json.dumps(content))
    except (ValueError, TypeError, OSError, UserError):
        pass


def _read(split: Path) -> None:
    opened = open_split(str(split))
    assert isinstance(opened.index, SampleIndex)
    loader = EvaluationLoader(
        opened.index,
        batch_size=64,
        rank=0,
        num_ranks=1,
        transform=transform_preset("none"),
        num_workers=0,
        source=opened.source,
    )
    for _ in loader:
        pass
