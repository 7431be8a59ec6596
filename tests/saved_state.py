"""What an engine saves, put together from the pieces of all ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from msam_scale.checkpoint import Manifest, Shards, read_weights
from msam_scale.checkpoint.folder import MANIFEST
from msam_scale.checkpoint.manifest import FileRecord
from msam_scale.checkpoint.progress import PROGRESS
from msam_scale.checkpoint.shard_files import write_shards
from msam_scale.engine import Engine
from msam_scale.sharding.pieces import MODEL, OPTIMIZER, Piece
from msam_scale.sharding.saved import SavedTensors


class Held(SavedTensors):
    """Whole tensors in memory, as a sharding loads them."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def optimizer_state_of(engine: Engine) -> Held:
    """The whole optimizer state on every rank; each element has to be one rank's to save."""
    return Held(joined(engine._sharding.optimizer_pieces(), prefix=OPTIMIZER))


def joined(own: list[Piece], *, prefix: str) -> dict[str, torch.Tensor]:
    """Whole tensors from the pieces of all ranks. Collective."""
    pieces = [Piece(p.name, p.shape, p.start, p.values.clone()) for p in own]
    everyone: list[list[Piece]] = [pieces]
    if dist.is_initialized() and dist.get_world_size() > 1:
        everyone = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, pieces)
    by_name: dict[str, list[Piece]] = {}
    for piece in (piece for pieces in everyone for piece in pieces):
        by_name.setdefault(piece.name, []).append(piece)
    whole = {}
    for name, parts in by_name.items():
        parts.sort(key=lambda piece: (piece.start, piece.values.numel()))
        ends = [piece.start + piece.values.numel() for piece in parts]
        assert [piece.start for piece in parts] == [0, *ends[:-1]], f"{name}: overlap or gap"
        values = torch.cat([piece.values for piece in parts])
        whole[name.removeprefix(prefix)] = values.view(parts[0].shape)
    return whole


def checkpoint_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    return dict(read_weights(Path(folder)))


def checkpoint_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: `model/…` and `optimizer/…`."""
    return dict(Shards(Path(folder), Manifest.read(Path(folder))).under(""))


def assert_same_tensors(folder: str | Path, other: str | Path) -> None:
    """Two checkpoints hold the same, bit for bit."""
    one, two = checkpoint_tensors(folder), checkpoint_tensors(other)
    assert one.keys() == two.keys()
    assert any(name.startswith(MODEL) for name in one)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def edit_progress(folder: str | Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes a checkpoint's progress as if it had been written so."""
    folder = Path(folder)
    path = folder / PROGRESS
    progress = json.loads(path.read_text())
    edit(progress)
    path.write_text(json.dumps(progress))
    reseal(folder)


def rewrite_tensors(folder: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Gives a checkpoint other tensors as if one rank had saved them."""
    folder = Path(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    write_shards([Piece.whole(*item) for item in tensors.items()], folder=folder, rank=0)
    reseal(folder)


def reseal(folder: Path) -> None:
    """Gives a checkpoint whose files were changed the manifest that fits them."""
    paths = [folder / PROGRESS, *folder.glob("*.safetensors")]
    files = {path.name: FileRecord.of(path) for path in paths}
    (folder / MANIFEST).write_bytes(Manifest(files=files).to_bytes())
