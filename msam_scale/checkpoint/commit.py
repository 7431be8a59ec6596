"""How a checkpoint comes to be: whole and on disk under its name, or not at all.

1. A hidden folder.
2. Every rank writes and flushes its files there, and takes their checksums.
3. When all have, rank 0 writes the progress and, last, the manifest; all is flushed.
4. The folder gets its name. From here on it is a checkpoint.
5. `latest` names it.
6. Older ones that are not to be kept go.

A process that is killed in between leaves a hidden folder, which the next start removes, and the
checkpoints of before.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from data_pipelines.durable_files import flush, partial_name, rename_to_new
from msam_scale.checkpoint.errors import DamagedCheckpointError, NotWrittenError
from msam_scale.checkpoint.folder import MANIFEST, mark_latest, prune_checkpoints, step_folder
from msam_scale.checkpoint.manifest import FileRecord, Manifest
from msam_scale.checkpoint.progress import PROGRESS, Progress
from msam_scale.checkpoint.shard_files import write_shards
from msam_scale.checkpoint.snapshot import Snapshot
from msam_scale.errors import NonFiniteError
from msam_scale.ranks import Ranks
from msam_scale.sharding.pieces import first_not_finite

_logger = logging.getLogger("msam_scale")
T = TypeVar("T")


def write_checkpoint(snapshot: Snapshot, ranks: Ranks) -> Path:
    """Writes a checkpoint. Collective.

    Returns:
        Its folder, complete and on disk.

    Raises:
        NotWrittenError: a file system refuses, on all ranks alike; what was there is still there.
        NonFiniteError: a value is not finite; likewise.
    """
    folder = step_folder(snapshot.directory, snapshot.progress.step)
    num_bytes = 0
    try:
        made = _together(ranks, lambda: _begin(snapshot, folder, ranks=ranks))
        partial, num_bytes = made[0][0], sum(own for _, own, _ in made)
        try:
            _check_finite(folder, [name for _, _, name in made if name is not None])
            records = _together(ranks, lambda: _write_own(snapshot, partial, rank=ranks.rank))
            _together(ranks, lambda: _finish(snapshot, partial, folder, records, ranks=ranks))
        except (NotWrittenError, NonFiniteError):
            if ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            raise
    except NotWrittenError as error:
        raise NotWrittenError(f"{folder}: {error}{_room(snapshot.directory, num_bytes)}") from error
    return folder


def verify_together(folder: Path, ranks: Ranks) -> Manifest:
    """Makes sure that a checkpoint is as it was written; ranks share the reading. Collective.

    Raises:
        DamagedCheckpointError: names the file, on all ranks alike.
    """
    manifest, trouble = None, None
    try:
        manifest = Manifest.read(folder)
        manifest.verify(folder, index=ranks.rank, count=ranks.size)
    except DamagedCheckpointError as error:
        trouble = str(error)
    for message in ranks.gathered(trouble):
        if message is not None:
            raise DamagedCheckpointError(message)
    assert manifest is not None
    return manifest


def _begin(snapshot: Snapshot, folder: Path, *, ranks: Ranks) -> tuple[Path, int, str | None]:
    """The hidden folder, which the first rank makes; this rank's bytes; what is not finite."""
    snapshot.ready()
    partial = partial_name(folder)
    if ranks.is_first:
        partial.mkdir(parents=True)
    num_bytes = sum(piece.num_bytes for piece in snapshot.pieces)
    checked = (piece for piece in snapshot.pieces if piece.name not in snapshot.never_finite)
    return partial, num_bytes, first_not_finite(checked)


def _check_finite(folder: Path, names: list[str]) -> None:
    if not names:
        return
    raise NonFiniteError(
        f"{min(names)} has values that are not finite after an update whose losses and gradients "
        f"were: {folder.name} is not kept, and the checkpoints before it are as they were; a lower "
        "optimizer.lr or another optimizer.args.eps may help"
    )


def _room(directory: Path, num_bytes: int) -> str:
    """How much there is and how much it takes, where that can be told."""
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return ""
    return f"; a checkpoint takes {num_bytes / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free there"


def _write_own(snapshot: Snapshot, partial: Path, *, rank: int) -> dict[str, FileRecord]:
    paths = write_shards(snapshot.pieces, folder=partial, rank=rank)
    for path in paths:
        flush(path)
    return {path.name: FileRecord.of(path) for path in paths}


def _finish(
    snapshot: Snapshot,
    partial: Path,
    folder: Path,
    records: list[dict[str, FileRecord]],
    *,
    ranks: Ranks,
) -> None:
    """What rank 0 does alone."""
    if not ranks.is_first:
        return
    files = {name: record for own in records for name, record in own.items()}
    files[PROGRESS] = _write_progress(snapshot.progress, partial)
    _write_manifest(partial, files)
    _give_name(partial, folder)
    mark_latest(snapshot.directory, folder)
    if snapshot.keep is not None:
        try:
            prune_checkpoints(snapshot.directory, keep=snapshot.keep)
        except OSError as error:
            _logger.warning("%s: old checkpoints stay: %s", snapshot.directory, error)


def _write_progress(progress: Progress, partial: Path) -> FileRecord:
    path = partial / PROGRESS
    path.write_bytes(progress.to_bytes())
    flush(path)
    return FileRecord.of(path)


def _write_manifest(partial: Path, files: Mapping[str, FileRecord]) -> None:
    path = partial / MANIFEST
    path.write_bytes(Manifest(files=files).to_bytes())
    flush(path)
    flush(partial)


def _give_name(partial: Path, folder: Path) -> None:
    """Renames; one of the same step that is there already goes when this one is in its place."""
    old = None
    if folder.is_dir():
        old = folder.rename(folder.with_name(f"{partial.name}-replaced"))
    try:
        rename_to_new(partial, folder)
    except OSError:
        if old is not None:
            old.rename(folder)
        raise
    flush(folder.parent)
    if old is not None:
        shutil.rmtree(old)


def _together(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """Does work on every rank; one that fails fails them all, so that none waits for ever."""
    result, trouble, fault = None, None, None
    try:
        result = work()
    except Exception as error:
        trouble = f"rank {ranks.rank}: {error}" if ranks.size > 1 else str(error)
        fault = None if isinstance(error, OSError | SafetensorError | MemoryError) else error
    outcomes = ranks.gathered((result, trouble))
    if fault is not None:
        raise fault
    for _, trouble in outcomes:
        if trouble is not None:
            raise NotWrittenError(f"the checkpoint could not be written: {trouble}")
    return [result for result, _ in outcomes]  # type: ignore[misc]
