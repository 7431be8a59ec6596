"""The data of a run: the splits that its config names, and the loaders over them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines import (
    BadDataPolicy,
    MicroBatchLoader,
    SampleMixing,
    SourceOptions,
    Split,
    open_split,
)
from data_pipelines.errors import UserError
from data_pipelines.preparation.record import DatasetRecord
from msam_scale.batch_plan import BatchPlan
from msam_scale.config import Config
from msam_scale.training.tasks import Task


@dataclass(frozen=True)
class RunData:
    """What a run trains and evaluates on.

    Attributes:
        train: samples to train on.
        val: samples to evaluate on, where the config names some.
        task: what is learnt from them.
    """

    train: Split
    val: Split | None
    task: Task


def open_run_split(location: str, config: Config) -> Split:
    """Opens a split as the `data` section says.

    Raises:
        UserError: it is not there, damaged, cannot be reached, or a setting has no effect on it.
    """
    section = config.data
    options = SourceOptions(allows_commands=section.allow_commands)
    if section.cache_dir is not None:
        options = replace(
            options,
            cache_dir=Path(section.cache_dir).expanduser(),
            cache_limit=sys.maxsize if section.cache_limit is None else section.cache_limit,
        )
    return open_split(location, options=options)


def data_set_description(train: Split) -> dict[str, Any]:
    """What the record of a prepared data set says that an export needs, as JSON.

    Its keys are `class_names` and `tokenizer`; empty where the data have no record beside them.
    """
    folder = Path(train.index.directory).parent
    try:
        record = DatasetRecord.read(folder)
    except UserError:
        return {}
    if record.fingerprints.get(train.index.directory.name) != train.index.fingerprint:
        return {}  # of other data
    tokenizer = None if record.tokenizer is None else record.tokenizer.model_dump_json()
    names = None if record.class_names is None else list(record.class_names)
    return {"class_names": names, "tokenizer": tokenizer}


def training_loader(
    data: RunData,
    config: Config,
    *,
    plan: BatchPlan,
    rank: int,
    steps: range,
    state: Mapping[str, Any] | None,
    checkpoint: Path | None = None,
) -> MicroBatchLoader:
    """The mini-batches of a run, as far as a rank loads them.

    Args:
        data: the run's.
        config: the run's.
        plan: which samples of a mini-batch a rank works on.
        rank: this one.
        steps: that it loads, counted from the start of the data.
        state: the loader's in the checkpoint that the run goes on from, if there is one.
        checkpoint: that one.

    Raises:
        UserError: a setting is out of range, or the state is of another order of samples.
    """
    section, training = config.data, config.training
    mixes = training.mixup is not None or training.cutmix is not None
    policy = BadDataPolicy()
    if section.on_error == "substitute":
        policy = BadDataPolicy(
            "substitute",
            seed=config.run.seed,
            max_samples=section.max_bad_samples,
            max_fraction=1.0,
        )
    loader = MicroBatchLoader(
        data.train.index,
        order=section.order,
        seed=config.run.seed,
        batch_size=plan.batch_size,
        micro_batches=plan.micro_batches,
        positions=[plan.slice_positions(rank, turn) for turn in range(plan.sequential)],
        transform=data.task.transform,
        num_workers=section.workers,
        first_step=steps.start,
        num_steps=len(steps),
        max_host_bytes=section.memory_limit,
        resident=section.resident,
        mixing=SampleMixing(training.mixup, training.cutmix) if mixes else None,
        on_error=policy,
        source=data.train.source,
    )
    if state is not None:
        try:
            # Phases cut the mini-batch into other micro-batches on purpose.
            loader.load_state_dict(state, allows_new_partition=bool(config.objective.phases))
        except UserError as error:
            raise UserError(f"{checkpoint}: {error}") from error
    return loader
