"""Builds the index of finished shards."""

import os
import shutil
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray

from data_pipelines.durable_files import new_directory
from data_pipelines.errors import UserError, a_few
from data_pipelines.index.format import (
    FORMAT_NAME,
    FORMAT_VERSION,
    INDEX_FOLDER,
    KEYS_FILE,
    META_FILE,
    SAMPLES_FILE,
    IndexMeta,
    TokenMeta,
    fingerprint_of,
    sample_dtype,
)
from data_pipelines.index.locate import check_file, find_remote_shards, find_shards
from data_pipelines.index.sample_index import SampleIndex
from data_pipelines.index.scan import about_dots
from data_pipelines.index.shard_table import ScanTask, ShardFindings, scan_to_files
from data_pipelines.processes import run_tasks
from data_pipelines.progress import Progress, no_progress
from data_pipelines.sources import is_command, is_remote, local_path
from data_pipelines.sources.redaction import without_secrets

_TOKEN_ROWS = ("input_ids", "token_type_ids")


def build_index(
    patterns: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    num_processes: int = 1,
    num_classes: int | None = None,
    ignored_columns: Sequence[str] = (),
    progress: Progress = no_progress,
) -> SampleIndex:
    """Makes the index of shards that are there already, and writes it beside them or elsewhere.

    What an interrupted or killed start has scanned is kept in a hidden folder beside the index, and
    the next one continues. Remote shards are fetched one by one, each process its own.

    Args:
        patterns: The shards, as `DIR/train-{000000..000146}.tar`, with `*`, or their folder; they
            are numbered in the order of the patterns, those of a folder or `*` by name. Or URLs.
        out: The folder that gets the index, which says where the shards are; by default theirs.
            The folder of remote shards, or one that cannot be written, needs another one.
        num_processes: Processes that scan.
        num_classes: Labels must be in 0 … num_classes - 1; by default the largest label decides.
        ignored_columns: Extensions of files in the shards that are neither image nor label.
        progress: Is told how far it is.

    Raises:
        UserError: A shard is missing, compressed, damaged or holds what cannot be read by offset,
            samples differ in their columns, a label is out of range, or there is an index already.
    """
    texts = [os.fspath(pattern) for pattern in patterns]
    location = None
    if any(map(is_remote, texts)):
        _check_recordable(texts, out=out)
        location, names = find_remote_shards(texts)
        shards = list(map(Path, names))
    else:
        shards = find_shards(list(map(local_path, texts)))
        for shard in shards:
            check_file(shard, folder=shard.parent)
    return index_shards(
        shards,
        location=location,
        out=None if out is None else Path(out),
        split=_folder_name(shards[0].parent if location is None else Path(location)),
        num_classes=num_classes,
        preshuffle_seed=None,
        created_by="data_pipelines: index of existing shards",
        ignored_columns=frozenset(column.lower().lstrip(".") for column in ignored_columns),
        num_processes=num_processes,
        progress=progress,
    )


def index_shards(
    shards: Sequence[Path],
    *,
    split: str,
    num_classes: int | None,
    preshuffle_seed: int | None,
    created_by: str,
    out: Path | None = None,
    location: str | None = None,
    expected_samples: int | None = None,
    tokens: TokenMeta | None = None,
    ignored_columns: Set[str] = frozenset(),
    num_processes: int = 1,
    progress: Progress = no_progress,
) -> SampleIndex:
    """Scans the shards of a split and writes `index/` beside them, or elsewhere.

    Args:
        shards: The shards in the order that numbers their samples; all in one folder.
        out: The folder that gets the index instead.
        location: The URL of the folder that shards are in which are not on this machine.
        split: Name of the split, for people.
        num_classes: Labels must be in 0 … num_classes - 1; None takes the largest label there is.
        preshuffle_seed: Seed of the shuffle the samples were written in; None when they were not,
            or nobody knows.
        created_by: What made the shards, for people.
        expected_samples: How many samples were written, where that is known.
        tokens: For text: what the rows of the tokens are and what they are filled up with. By
            default one row is `input_ids`, and a second one `token_type_ids`.
        ignored_columns: Extensions of files in the shards that are not read.
        num_processes: Processes that scan.
        progress: Is told how far it is.

    Raises:
        UserError: A shard is damaged, samples differ in their columns, a label is out of range,
            the count is not the expected one, there is an index already, or it cannot be written.
    """
    shard_folder = _common_folder(shards)
    directory = out or shard_folder
    if location is None and directory.resolve() != shard_folder.resolve():
        shards_in: str | None = str(shard_folder.absolute())
    else:
        shards_in = location
    with _work_folder(directory) as work:
        tasks = [
            ScanTask(
                path=path if location is None else work / f"{number:06d}.fetched" / path.name,
                number=number,
                work=work,
                ignored_columns=ignored_columns,
                location=location,
            )
            for number, path in enumerate(shards)
        ]
        found = _scanned(tasks, num_processes=num_processes, progress=progress)
        _check_alike(tasks, found)
        num_samples = sum(findings.shard.num_samples for findings in found)
        if expected_samples is not None and num_samples != expected_samples:
            raise UserError(
                f"{directory}: {expected_samples} samples were written, "
                f"but the shards hold {num_samples}"
            )
        classes = _num_classes(tasks, found, given=num_classes)
        columns = found[0].columns
        with new_directory(directory / INDEX_FOLDER) as folder:
            class_counts = _write_samples(folder / SAMPLES_FILE, tasks, found, num_classes=classes)
            with (folder / KEYS_FILE).open("wb") as file:
                for task in tasks:
                    file.write(task.keys_path.read_bytes())
            shard_metas = tuple(findings.shard for findings in found)
            unsigned = IndexMeta(
                format=FORMAT_NAME,
                version=FORMAT_VERSION,
                split=split,
                num_samples=num_samples,
                num_classes=classes,
                class_counts=tuple(class_counts.tolist()),
                columns=columns,
                image_shape=_common_shape(found),
                preshuffle_seed=preshuffle_seed,
                tokens=_token_meta(directory, found[0], given=tokens),
                ignored_columns=tuple(sorted(ignored_columns)),
                shards_in=shards_in,
                shards=shard_metas,
                created_by=created_by,
                fingerprint="",
            )
            meta = unsigned.model_copy(update={"fingerprint": fingerprint_of(folder, unsigned)})
            meta.write(folder / META_FILE)
        shutil.rmtree(work)
    # Not `open`: where only some of the shards were asked for, the folder holds others, too.
    return SampleIndex(directory, meta)


def _check_recordable(patterns: Sequence[str], *, out: str | Path | None) -> None:
    """Refuses remote shards whose index could not say where they are, or have no place."""
    shown = without_secrets(patterns[0])
    if not all(map(is_remote, patterns)) or any(map(is_command, patterns)):
        raise UserError(f"{a_few(map(without_secrets, patterns))}: not all are URLs of shards")
    if any(without_secrets(pattern) != pattern for pattern in patterns):
        raise UserError(
            f"{shown}: has a user, a password or a query, which the index would keep; leave them "
            "to `.netrc` or to the environment"
        )
    if out is None:
        raise UserError(f"{shown}: remote, so say with --out which folder gets the index")


@contextmanager
def _work_folder(directory: Path) -> Iterator[Path]:
    """Keeps what was scanned until the index is written, and other processes away meanwhile."""
    if (directory / INDEX_FOLDER).exists():
        raise UserError(
            f"{directory / INDEX_FOLDER}: there is something here already, and it is never "
            "overwritten; remove it to make the index anew"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(directory, error) from error
    lock = filelock.FileLock(directory / f".{INDEX_FOLDER}.lock")
    work = directory / f".{INDEX_FOLDER}.unfinished"
    # These come with a folder from elsewhere, and writing would follow them.
    for path in (Path(lock.lock_file), work, *(work.iterdir() if work.is_dir() else ())):
        if path.is_symlink():
            raise UserError(f"{path}: a link, where the index would be written; remove it")
    try:
        held = lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise UserError(f"{directory}: is being indexed by another process; wait for it") from error
    except OSError as error:
        raise _not_writable(directory, error) from error
    with held:
        try:
            work.mkdir(exist_ok=True)
            yield work
        except OSError as error:
            raise UserError(
                f"{directory}: cannot be indexed: {error}; what was scanned is kept"
            ) from error
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


def _not_writable(directory: Path, error: OSError) -> UserError:
    return UserError(
        f"{directory}: the index cannot be written here: {error.strerror}; --out names another "
        "folder for it"
    )


def _scanned(
    tasks: Sequence[ScanTask], *, num_processes: int, progress: Progress
) -> list[ShardFindings]:
    found: dict[str, ShardFindings] = {}
    progress("indexing", done=0, total=len(tasks), unit="shards")
    for findings in run_tasks(scan_to_files, tasks, num_workers=num_processes):
        found[findings.shard.name] = findings
        progress("indexing", done=len(found), total=len(tasks), unit="shards")
    return [found[task.path.name] for task in tasks]


def _folder_name(folder: Path) -> str:
    # `.` and `..` have none themselves.
    return folder.resolve().name if folder.name in ("", "..") else folder.name


def _common_folder(shards: Sequence[Path]) -> Path:
    folders = {path.parent for path in shards}
    if len(folders) != 1:
        names = a_few(sorted(map(str, folders))) or "no shards at all"
        raise UserError(f"the shards of a split lie in one folder, not: {names}")
    if len(set(shards)) != len(shards):
        twice = sorted({path.name for path in shards if shards.count(path) > 1})
        raise UserError(f"{folders.pop()}: named more than once: {a_few(twice)}")
    return folders.pop()


def _check_alike(tasks: Sequence[ScanTask], found: Sequence[ShardFindings]) -> None:
    first = found[0]
    for task, findings in zip(tasks, found, strict=True):
        if findings.columns != first.columns:
            raise UserError(
                f"{task.where}: sample {findings.first_key!r} has the columns "
                f"{a_few(findings.columns)}, the ones before it {a_few(first.columns)}"
                f"{about_dots(findings.first_key, findings.columns)}"
            )
        if findings.has_tokens and findings.shape[0] != first.shape[0]:
            raise UserError(
                f"{task.where}: its tokens have {findings.shape[0]} rows, the ones before it "
                f"{first.shape[0]}"
            )


def _num_classes(
    tasks: Sequence[ScanTask], found: Sequence[ShardFindings], *, given: int | None
) -> int:
    if given is None:
        return 1 + max(findings.last_class for findings in found)
    for task, findings in zip(tasks, found, strict=True):
        if findings.last_class >= given:
            raise UserError(
                f"{task.where}: sample {findings.last_class_key!r} is of class "
                f"{findings.last_class}, but the classes are 0 … {given - 1}"
            )
    return given


def _write_samples(
    path: Path, tasks: Sequence[ScanTask], found: Sequence[ShardFindings], *, num_classes: int
) -> NDArray[np.int64]:
    """Joins the tables of the shards in the file, a shard at a time; returns the class counts."""
    dtype = sample_dtype(found[0].columns, has_tokens=found[0].has_tokens)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (sum(findings.shard.num_samples for findings in found),),
    }
    class_counts = np.zeros(num_classes, np.int64)
    # Written, not mapped: on a full disk a mapped file would kill the process.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for task in tasks:
            table = np.lib.format.open_memmap(task.samples_path, mode="r")
            if table.dtype != dtype:
                raise UserError(f"{task.samples_path}: damaged; remove {task.work} and start again")
            class_counts += np.bincount(table["label"], minlength=num_classes)
            file.write(table.tobytes())
    return class_counts


def _common_shape(found: Sequence[ShardFindings]) -> tuple[int, int, int] | None:
    shapes = {findings.shape for findings in found}
    is_one = len(shapes) == 1 and all(findings.has_one_shape for findings in found)
    if found[0].has_tokens or not is_one:
        return None
    height, width, channels = shapes.pop()
    return height, width, channels


def _token_meta(
    directory: Path, first: ShardFindings, *, given: TokenMeta | None
) -> TokenMeta | None:
    if not first.has_tokens:
        assert given is None, "tokens are described, but the samples are images"
        return None
    num_rows = first.shape[0]
    if given is None and num_rows <= len(_TOKEN_ROWS):
        return TokenMeta(rows=_TOKEN_ROWS[:num_rows])
    if given is None or len(given.rows) != num_rows:
        names = "none" if given is None else ", ".join(given.rows)
        raise UserError(
            f"{directory}: its tokens have {num_rows} rows, but names for them: {names}"
        )
    return given
