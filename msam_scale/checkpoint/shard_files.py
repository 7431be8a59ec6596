"""Tensors in safetensors files, each file with the parts that one rank holds.

The layout is the one of `torch.distributed.checkpoint`'s `HuggingFaceStorageWriter` with
`save_distributed`: every entry is a box of the whole tensor, and the header says where it begins.
So its `HuggingFaceStorageReader` reads a checkpoint as well. That writer is not used because it
builds each file in memory and puts one box of a tensor into a rank's files, while a range of
DeepSpeed's flat partitions is several boxes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from msam_scale.sharding.pieces import Piece, boxes

SUFFIX = ".safetensors"
OFFSETS_KEY, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_HEADER = {"DCP_VERSION": "1.0", "format": "pt"}
# Small enough that a file's tensors leave the device, and are hashed, without much memory.
_FILE_BYTES = 256 << 20


def write_shards(pieces: Sequence[Piece], *, folder: Path, rank: int) -> list[Path]:
    """Writes a rank's pieces; the caller flushes.

    Returns:
        The files.

    Raises:
        OSError: the file system refuses.
        SafetensorError: the same, as that library says it.
    """
    paths = []
    for index, entries in enumerate(_files(pieces)):
        path = folder / f"tensors-{rank:05d}-{index:05d}{SUFFIX}"
        offsets = {name: {OFFSETS: list(box.offsets)} for name, box in entries.items()}
        tensors = {name: box.values.cpu().contiguous() for name, box in entries.items()}
        _part_company(tensors)
        save_file(tensors, path, metadata={**_HEADER, OFFSETS_KEY: json.dumps(offsets)})
        paths.append(path)
    return paths


def _part_company(tensors: dict[str, torch.Tensor]) -> None:
    """Copies what shares memory with another: tied weights are saved under each name."""
    taken: dict[int, list[tuple[int, int]]] = {}
    for name, tensor in tensors.items():
        first = tensor.data_ptr()
        last = first + tensor.numel() * tensor.element_size()
        ranges = taken.setdefault(tensor.untyped_storage().data_ptr(), [])
        if any(first < end and start < last for start, end in ranges):
            tensors[name] = tensor.clone()
        else:
            ranges.append((first, last))


@dataclass(frozen=True)
class _Box:
    offsets: tuple[int, ...]
    values: torch.Tensor


def _files(pieces: Sequence[Piece]) -> Iterator[dict[str, _Box]]:
    """Spreads boxes over files: of one tensor there is one box in each."""
    open_files: list[dict[str, _Box]] = []
    sizes: list[int] = []
    for piece in pieces:
        stop = piece.start + piece.values.numel()
        done = first = 0
        for offsets, shape in boxes(piece.shape, piece.start, stop):
            length = math.prod(shape)
            values = piece.values[done : done + length].view(shape)
            done += length
            size = length * piece.values.element_size()
            index = first
            while index < len(open_files) and (
                piece.name in open_files[index] or sizes[index] + size > _FILE_BYTES
            ):
                index += 1
            if index == len(open_files):
                open_files.append({})
                sizes.append(0)
            open_files[index][piece.name] = _Box(offsets, values)
            sizes[index] += size
            first = index + 1
    yield from open_files
