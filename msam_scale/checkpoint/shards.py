"""The tensors of a checkpoint, out of the files of all ranks that wrote it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from msam_scale.checkpoint.errors import DamagedCheckpointError
from msam_scale.checkpoint.manifest import Manifest
from msam_scale.checkpoint.shard_files import OFFSETS, OFFSETS_KEY, SUFFIX
from msam_scale.sharding.saved import SavedTensors

# As safetensors spells them.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_HEADER_LIMIT = 64 << 20  # characters of JSON
_MOST_ELEMENTS = 1 << 48


@dataclass(frozen=True)
class _Part:
    """A box of a tensor in a file, and where its elements lie in the whole."""

    path: Path
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype

    @property
    def length(self) -> int:
        return math.prod(self.sizes)

    def start(self, shape: torch.Size) -> int:
        """The first element's place in row-major order."""
        place = 0
        for offset, size in zip(self.offsets, shape, strict=True):
            place = place * size + offset
        return place


@dataclass(frozen=True)
class _Tensor:
    shape: torch.Size
    dtype: torch.dtype
    parts: list[tuple[int, _Part]]  # by first element


class Shards:
    """All tensors of a checkpoint, by name, whatever layout they were saved at.

    Files stay open, and are read where an element is asked for.

    Args:
        folder: the checkpoint's.
        manifest: says which files there are; nothing else is opened.

    Raises:
        DamagedCheckpointError: a file is no safetensors file, or the parts of a tensor do not make
            up a whole.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._files: dict[Path, Any] = {}
        parts: dict[str, list[_Part]] = {}
        for name in sorted(manifest.files):
            if name.endswith(SUFFIX):
                for tensor, part in self._open(folder / name):
                    parts.setdefault(tensor, []).append(part)
        self._tensors = {name: _joined(name, boxes) for name, boxes in parts.items()}

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return sorted(self._tensors)

    def shape(self, name: str) -> torch.Size:
        """Of a whole tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor."""
        return self._tensors[name].dtype

    def elements(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements of a tensor in row-major order, one-dimensional, on the CPU.

        Raises:
            DamagedCheckpointError: a file cannot be read.
        """
        tensor = self._tensors[name]
        found = [
            self._values(name, part)[max(0, start - first) : stop - first]
            for first, part in tensor.parts
            if first < stop and start < first + part.length
        ]
        if len(found) == 1:
            return found[0]
        return torch.cat(found) if found else torch.empty(0, dtype=tensor.dtype)

    def under(self, prefix: str) -> TensorsUnder:
        """The tensors whose names begin with `prefix`, named without it."""
        return TensorsUnder(self, prefix)

    def _values(self, name: str, part: _Part) -> torch.Tensor:
        try:
            values: torch.Tensor = self._files[part.path].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpointError(f"{part.path}: damaged: {error}") from error
        return values.reshape(-1)

    def _open(self, path: Path) -> Iterator[tuple[str, _Part]]:
        try:
            file = safe_open(path, framework="pt")
            offsets = _offsets(path, file.metadata() or {})
            self._files[path] = file
            for name in file.keys():  # noqa: SIM118
                box = file.get_slice(name)
                sizes, place = tuple(box.get_shape()), offsets.get(name)
                if place is None or len(place) != len(sizes):
                    raise DamagedCheckpointError(f"{path}: damaged: no place is given for {name!r}")
                if (dtype := _DTYPES.get(box.get_dtype())) is None:
                    raise DamagedCheckpointError(
                        f"{path}: damaged: the type of {name!r} is unknown"
                    )
                yield name, _Part(path, place, sizes, dtype)
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpointError(f"{path}: damaged: cannot be read: {error}") from error


class TensorsUnder(SavedTensors):
    """Some of a checkpoint's tensors, each read when it is asked for."""

    def __init__(self, shards: Shards, prefix: str) -> None:
        self._shards, self._prefix = shards, prefix
        self._names = dict.fromkeys(
            name.removeprefix(prefix) for name in shards.names if name.startswith(prefix)
        )

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        shape = self.shape(name)
        return self.elements(name, 0, shape.numel()).view(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def folder(self) -> Path:
        """The checkpoint's."""
        return self._shards.folder

    def shape(self, name: str) -> torch.Size:
        """The shape of a whole tensor, without reading it."""
        return self._shards.shape(self._prefix + name)

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor, without reading it."""
        return self._shards.dtype(self._prefix + name)

    def elements(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements in row-major order, one-dimensional."""
        return self._shards.elements(self._prefix + name, start, stop)


def _offsets(path: Path, metadata: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Where each entry of a file begins in its tensor."""
    text = metadata.get(OFFSETS_KEY, "")
    try:
        if len(text) > _HEADER_LIMIT:
            raise ValueError("too long")
        places = {name: tuple(entry[OFFSETS]) for name, entry in json.loads(text).items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path}: damaged: its header: {error}") from error
    numbers = (number for one in places.values() for number in one)
    if not all(type(number) is int and 0 <= number < _MOST_ELEMENTS for number in numbers):
        raise DamagedCheckpointError(f"{path}: damaged: its header has places that are no numbers")
    return places


def _joined(name: str, parts: list[_Part]) -> _Tensor:
    """Puts parts together: each element has to be in exactly one of them."""
    first = parts[0]
    if any(part.dtype != first.dtype or len(part.sizes) != len(first.sizes) for part in parts):
        raise DamagedCheckpointError(f"{first.path}: damaged: {name!r} has parts of several kinds")
    ends = [
        [offset + size for offset, size in zip(part.offsets, part.sizes, strict=True)]
        for part in parts
    ]
    shape = torch.Size(max(sizes) for sizes in zip(*ends, strict=True))
    placed = sorted(((part.start(shape), part) for part in parts), key=lambda entry: entry[0])
    position = 0
    for start, part in placed:
        if start != position or not _is_range(part, shape):
            raise DamagedCheckpointError(
                f"{part.path}: damaged: {name!r} has element {min(start, position)} twice or not "
                "at all"
            )
        position += part.length
    if position != math.prod(shape):
        raise DamagedCheckpointError(f"{first.path}: damaged: {name!r} lacks its last elements")
    return _Tensor(shape, first.dtype, placed)


def _is_range(part: _Part, shape: torch.Size) -> bool:
    """Whether a box has its elements one after another in the whole tensor."""
    is_inside = False  # once a dimension has more than one entry, the later ones are whole
    for size, whole in zip(part.sizes, shape, strict=True):
        if is_inside and size != whole:
            return False
        is_inside = is_inside or size > 1
    return True
