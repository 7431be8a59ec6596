"""Writes all shards of a data set in parallel, and the index of each split."""

import functools
from collections.abc import Iterator, Sequence

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex, TokenMeta, index_shards
from data_pipelines.index.format import INDEX_FOLDER
from data_pipelines.preparation.recipe import OpenedDataset
from data_pipelines.preparation.work_folder import WorkFolder
from data_pipelines.preparation.write_shard import ShardRecord, ShardTask, write_shard
from data_pipelines.processes import run_tasks
from data_pipelines.progress import Progress


def write_splits(
    dataset: OpenedDataset,
    *,
    work: WorkFolder,
    seed: int,
    created_by: str,
    num_workers: int,
    progress: Progress,
) -> dict[str, str]:
    """Writes every split into `work.directory`; what is there already is kept.

    Returns:
        The fingerprint of each split's index.

    Raises:
        UserError: A sample cannot be read, or what was written cannot be read back whole.
    """
    tasks = {split: list(_tasks(dataset, split, work)) for split in dataset.splits}
    total = sum(source.num_samples for source in dataset.splits.values())
    done = 0
    progress("writing", done=done, total=total, unit="samples")
    all_tasks = [task for of_split in tasks.values() for task in of_split]
    for record in run_tasks(write_shard, all_tasks, num_workers=num_workers):
        done += record.num_samples
        progress("writing", done=done, total=total, unit="samples")
    return {
        split: _indexed(
            of_split,
            dataset=dataset,
            split=split,
            seed=seed,
            created_by=created_by,
            num_workers=num_workers,
            progress=progress,
        ).fingerprint
        for split, of_split in tasks.items()
    }


def _tasks(dataset: OpenedDataset, split: str, work: WorkFolder) -> Iterator[ShardTask]:
    directory = work.directory / split
    directory.mkdir(exist_ok=True)
    for number in range(dataset.splits[split].num_shards):
        name = f"{split}-{number:06d}"
        yield ShardTask(
            source=dataset.splits[split],
            number=number,
            path=directory / f"{name}.tar",
            record_path=work.shard_records / f"{name}.json",
        )


def _indexed(
    tasks: Sequence[ShardTask],
    *,
    dataset: OpenedDataset,
    split: str,
    seed: int,
    created_by: str,
    num_workers: int,
    progress: Progress,
) -> SampleIndex:
    directory = tasks[0].path.parent
    if (directory / INDEX_FOLDER).exists():
        index = SampleIndex.open(directory)
        index.verify_fingerprint()
    else:
        index = index_shards(
            [task.path for task in tasks],
            split=split,
            num_classes=dataset.num_classes,
            preshuffle_seed=seed,
            created_by=created_by,
            expected_samples=dataset.splits[split].num_samples,
            tokens=_token_meta(dataset),
            num_processes=num_workers,
            progress=functools.partial(_of_split, progress, split),
        )
    _check_written(index, tasks)
    return index


def _of_split(
    progress: Progress, split: str, what: str, *, done: int, total: int | None, unit: str
) -> None:
    """Names the split: the same words twice would be shown as one piece of work."""
    progress(f"{what} {split}", done=done, total=total, unit=unit)


def _token_meta(dataset: OpenedDataset) -> TokenMeta | None:
    if dataset.tokenizer is None:
        return None
    # Without a token to fill up with, any will do where a model looks at the attention mask alone;
    # training refuses one that fills up with another.
    return TokenMeta(rows=dataset.tokenizer.rows, pad_token_id=dataset.tokenizer.pad_token_id or 0)


def _check_written(index: SampleIndex, tasks: Sequence[ShardTask]) -> None:
    """Checks that what the index found is what was written: disks do lie."""
    for task, found in zip(tasks, index.meta.shards, strict=True):
        written = ShardRecord.model_validate_json(task.record_path.read_bytes())
        if found.sha256 != written.sha256:
            raise UserError(
                f"{task.path}: changed after it was written; start again, which writes it anew"
            )
