"""The index of a remote split, fetched to a local folder."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from data_pipelines.durable_files import new_directory
from data_pipelines.errors import UserError
from data_pipelines.index import IndexMeta, SampleIndex
from data_pipelines.index.format import (
    INDEX_FOLDER,
    KEYS_FILE,
    META_FILE,
    SAMPLES_FILE,
    sample_dtype,
)
from data_pipelines.index.limits import MOST_KEY_BYTES, MOST_META_BYTES, MOST_TABLE_HEADER_BYTES
from data_pipelines.sources import ShardSource
from data_pipelines.sources.file_names import checked_file_name, checked_sha256

_INDEX_CACHE = "indexes"


def fetch_index(source: ShardSource, *, cache_dir: Path) -> SampleIndex:
    """Opens the index of a remote split.

    What the index says about itself, meta.json, is fetched every time; the table of samples and
    their names only if the cache does not have those with the same fingerprint. They are checked
    against it either way.

    Args:
        source: The folder of the split.
        cache_dir: Where indexes are kept; processes may share it.

    Raises:
        UserError: The index is missing, cannot be reached or is damaged.
    """
    where = source.where(f"{INDEX_FOLDER}/{META_FILE}")
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder, META_FILE)
        _fetch(source, META_FILE, into=fetched, most_bytes=MOST_META_BYTES)
        with _called(fetched, where):
            meta = IndexMeta.read(fetched)
    if meta.shards_in is not None:
        raise UserError(
            f"{where}: its shards are elsewhere, which only an index on this machine may say; copy "
            "the folder of the index here, and give that"
        )
    for shard in meta.shards:
        checked_file_name(shard.name, found_in=where)
    fingerprint = checked_sha256(meta.fingerprint, found_in=where)
    target = cache_dir / _INDEX_CACHE / fingerprint
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / f"{fingerprint}.lock"):
            index = _kept(target, meta)
            if index is None:
                _fetch_to(target, source, meta)
                index = SampleIndex(target, meta)
            return index
    except OSError as error:
        raise UserError(f"cache_dir: {cache_dir}: the index cannot be kept: {error}") from error


def _kept(target: Path, meta: IndexMeta) -> SampleIndex | None:
    """Opens an index that was fetched before; None when there is none, or it was damaged."""
    if not target.is_dir():
        return None
    try:
        index = SampleIndex(target, meta)
        index.verify_fingerprint()
    except UserError:
        return None
    return index


def _fetch_to(target: Path, source: ShardSource, meta: IndexMeta) -> None:
    # Under the lock, so these were left by killed processes.
    for left in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(left)
    with new_directory(target, replaces=True) as folder:
        (folder / INDEX_FOLDER).mkdir()
        record = sample_dtype(meta.columns, has_tokens=meta.tokens is not None)
        most_bytes = {
            SAMPLES_FILE: MOST_TABLE_HEADER_BYTES + meta.num_samples * record.itemsize,
            KEYS_FILE: meta.num_samples * MOST_KEY_BYTES,
        }
        for name, most in most_bytes.items():
            _fetch(source, name, into=folder / INDEX_FOLDER / name, most_bytes=most)
        meta.write(folder / INDEX_FOLDER / META_FILE)
        with _called(folder, source.where("").rstrip("/")):
            index = SampleIndex(folder, meta)
            index.verify_fingerprint()
            index.key(meta.num_samples - 1)


def _fetch(source: ShardSource, name: str, *, into: Path, most_bytes: int) -> None:
    """Fetches a file of the index, which a server may send without end."""
    num_bytes = 0
    with into.open("wb") as file:
        for piece in source.pieces(f"{INDEX_FOLDER}/{name}", num_bytes=None):
            num_bytes += len(piece)
            if num_bytes > most_bytes:
                where = source.where(f"{INDEX_FOLDER}/{name}")
                raise UserError(f"{where}: more than the {most_bytes} bytes it can have")
            file.write(piece)


@contextmanager
def _called(path: Path, where: str) -> Iterator[None]:
    """Lets errors name the remote file and not its temporary copy."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), where)) from error
