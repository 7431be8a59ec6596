"""Checks a prepared data set: every checksum, every sample, all counts."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.index import IndexMeta, SampleIndex
from data_pipelines.index.format import INDEX_FOLDER, META_FILE
from data_pipelines.index.locate import is_folder, other_shards
from data_pipelines.inspection.check_shard import Problem, check_shard
from data_pipelines.preparation.record import RECORD_FILE, DatasetRecord
from data_pipelines.processes import run_tasks
from data_pipelines.progress import Progress, no_progress
from data_pipelines.sources import is_remote
from data_pipelines.sources.file_names import checked_file_name


@dataclass(frozen=True)
class CheckReport:
    """What was found.

    Attributes:
        num_samples: How many samples each split has.
        num_bytes: How many bytes of shards were read.
        problems: Everything that is wrong, at most 20 for each shard; empty when all is well.
        num_more_problems: How many others there are.
    """

    num_samples: dict[str, int]
    num_bytes: int
    problems: tuple[Problem, ...]
    num_more_problems: int

    @property
    def is_whole(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


def check_dataset(
    directory: str | Path, *, num_workers: int = 1, progress: Progress = no_progress
) -> CheckReport:
    """Checks everything in a folder that `prepare` made, or in that of a single split.

    It goes on after a problem, so that one run finds them all: shards that are missing or differ
    from their checksum, samples that differ from theirs, cannot be decoded or are of another class
    than the index says, an index that differs from its fingerprint, shards that it does not have,
    and counts that disagree.

    Args:
        directory: The folder.
        num_workers: Processes to use.
        progress: Is told how far it is.

    Raises:
        UserError: There is no prepared data here at all.
    """
    root = Path(directory)
    fingerprints = _splits_of(root)
    num_samples: dict[str, int] = {}
    problems: list[Problem] = []
    num_bytes = num_more = 0
    for split, fingerprint in fingerprints.items():
        folder = root / split if fingerprint is not None else root
        index = _open(folder, problems)
        if index is None:
            continue
        if is_remote(index.shards_in):
            raise UserError(
                f"{folder}: its shards are at {index.shards_in}; local ones are checked"
            )
        num_samples[index.meta.split] = index.num_samples
        problems += _problems_of_index(index, fingerprint)
        what, done = f"checking {index.meta.split}", 0
        progress(what, done=0, total=index.num_samples, unit="samples")
        task = functools.partial(check_shard, index)
        for report in run_tasks(task, range(len(index.meta.shards)), num_workers=num_workers):
            problems += report.problems
            num_more += report.num_more_problems
            num_bytes += report.num_bytes
            done += report.num_samples
            progress(what, done=done, total=index.num_samples, unit="samples")
    return CheckReport(
        num_samples=num_samples,
        num_bytes=num_bytes,
        problems=tuple(sorted(problems)),
        num_more_problems=num_more,
    )


def _splits_of(root: Path) -> dict[str, str | None]:
    """Returns the recorded fingerprint by split; None for a folder that is itself a split."""
    if is_folder(root) and (root / RECORD_FILE).is_file():
        fingerprints = DatasetRecord.read(root).fingerprints
        for split in fingerprints:
            checked_file_name(split, found_in=str(root / RECORD_FILE), kind="split")
        return dict(fingerprints)
    if (root / INDEX_FOLDER).is_dir():
        return {root.name: None}
    raise UserError(
        f"{root}: holds neither {RECORD_FILE} nor {INDEX_FOLDER}/: no prepared data to check"
    )


def _open(folder: Path, problems: list[Problem]) -> SampleIndex | None:
    # Not `SampleIndex.open`, which would stop at the first problem of all that are looked for here.
    try:
        return SampleIndex(folder, IndexMeta.read(folder / INDEX_FOLDER / META_FILE))
    except UserError as error:
        problems.append(Problem(str(folder), str(error)))
        return None


def _problems_of_index(index: SampleIndex, fingerprint: str | None) -> Iterator[Problem]:
    where = str(index.directory / INDEX_FOLDER)
    try:
        index.verify_fingerprint()
    except UserError as error:
        yield Problem(where, str(error))
    if fingerprint is not None and index.fingerprint != fingerprint:
        yield Problem(where, f"not the split that {RECORD_FILE} records")
    for name in other_shards(index.directory, index.meta):
        yield Problem(str(index.directory / name), f"not in {INDEX_FOLDER}/: nothing reads it")
    labels = np.asarray(index.samples["label"])
    if labels.size and (labels.min() < 0 or labels.max() >= index.num_classes):
        yield Problem(where, f"labels {labels.min()} … {labels.max()} of {index.num_classes}")
    elif tuple(np.bincount(labels, minlength=index.num_classes).tolist()) != (
        index.meta.class_counts
    ):
        yield Problem(where, f"{META_FILE} counts other classes than the samples are of")
    if sum(shard.num_samples for shard in index.meta.shards) != index.num_samples:
        yield Problem(where, f"{META_FILE} counts another number of samples than its shards have")
