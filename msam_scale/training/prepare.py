"""Everything that can be wrong with a run is found here, before anything starts or is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data_pipelines import SampleIndex, TransformPreset, transform_preset
from data_pipelines.errors import UserError
from msam_scale.ascent import ascent_rule
from msam_scale.batch_plan import BatchPlan
from msam_scale.config import Config, load_config
from msam_scale.initialization import batch_plan, check_batch_norm
from msam_scale.models import ModelRequest, build_model, check_model_name
from msam_scale.optimization import check_schedule
from msam_scale.optimization.from_config import optimizer_builder
from msam_scale.training.findings import Findings
from msam_scale.training.run_folder import RunFolder


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start.

    Attributes:
        config: checked for this number of ranks.
        plan: the layout of a mini-batch.
        train_index: samples to train on.
        val_index: samples to evaluate on, where the config names some.
        transform: what is done to the images.
        model: freshly initialised, on the CPU.
        steps_per_epoch: full mini-batches of an epoch.
        num_steps: optimizer steps of the run.
        folder: the run's folder and what is in it already.
    """

    config: Config
    plan: BatchPlan
    train_index: SampleIndex
    val_index: SampleIndex | None
    transform: TransformPreset
    model: nn.Module
    steps_per_epoch: int
    num_steps: int
    folder: RunFolder


def prepare_run(
    source: str | Path, *, overrides: Iterable[str] = (), world_size: int
) -> PreparedRun:
    """Loads the config, opens the data, builds the model, finds the checkpoint; writes nothing.

    Raises:
        ConfigError: everything that is wrong, together.
    """
    overrides = tuple(overrides)
    config = load_config(source, overrides=overrides, world_size=world_size, for_training=True)
    plan = batch_plan(config, world_size=world_size)
    findings = Findings(source, overrides=overrides)
    train_index = val_index = transform = model = folder = None
    with findings.collected("data.transform"):
        transform = transform_preset(config.data.transform)
    with findings.collected("data.train"):
        train_index = SampleIndex.open(str(config.data.train))
    if config.data.val is not None:
        with findings.collected("data.val"):
            val_index = SampleIndex.open(config.data.val)
            _check_same_kind(val_index, train_index)
    with findings.collected("objective.ascent"):
        ascent_rule(config.objective.ascent)
    with findings.collected("optimizer.name"):
        optimizer_builder(config)
    with findings.collected("model.name"):
        check_model_name(config.model.source, str(config.model.name))
        if train_index is not None:
            model = _build(config, train_index)
            with findings.collected("batch.norm_samples"):
                check_batch_norm(model, config, plan)
    steps_per_epoch = num_steps = 0
    if train_index is not None:
        with findings.collected("batch.size"):
            steps_per_epoch = _steps_per_epoch(config, train_index)
            num_steps = config.training.steps or steps_per_epoch * (config.training.epochs or 0)
            with findings.collected("schedule.warmup"):
                check_schedule(config.schedule, num_steps=num_steps)
    resumes_elsewhere = config.checkpoint.resume not in ("auto", "never")
    with findings.collected("checkpoint.resume" if resumes_elsewhere else "run.name"):
        fingerprint = None if train_index is None else train_index.fingerprint
        folder = RunFolder.find(config, fingerprint=fingerprint)
    findings.raise_all()
    assert train_index is not None
    assert transform is not None
    assert model is not None
    assert folder is not None
    return PreparedRun(
        config=config,
        plan=plan,
        train_index=train_index,
        val_index=val_index,
        transform=transform,
        model=model,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        folder=folder,
    )


def _build(config: Config, index: SampleIndex) -> nn.Module:
    if index.image_shape is None:
        raise UserError(
            f"{index.directory}: its images differ in size, and data.transform: "
            f"{config.data.transform} does not bring them to one; a data set of one size works"
        )
    request = ModelRequest(
        name=str(config.model.name),
        num_classes=index.num_classes,
        num_channels=index.image_shape[2],
        arguments=config.model.args,
    )
    return build_model(config.model.source, request, seed=config.run.seed)


def _steps_per_epoch(config: Config, index: SampleIndex) -> int:
    steps = index.num_samples // config.batch.size
    if not steps:
        raise UserError(
            f"{config.batch.size} is more than the {index.num_samples} samples of "
            f"{index.directory}; at most {index.num_samples} works"
        )
    return steps


def _check_same_kind(val_index: SampleIndex, train_index: SampleIndex | None) -> None:
    if train_index is None:
        return
    for what in ("num_classes", "image_shape"):
        val, train = getattr(val_index, what), getattr(train_index, what)
        if val != train:
            raise UserError(
                f"{val_index.directory}: its {what} is {val}, that of the training data {train}; "
                "validation data of the same data set works"
            )
