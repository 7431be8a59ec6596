"""Everything that can be wrong with a run is found here, before anything starts or is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from data_pipelines import SampleIndex, Split, check_order, sample_order, transform_preset
from data_pipelines.errors import UserError
from msam_scale.ascent import ascent_rule
from msam_scale.checkpoint import Progress
from msam_scale.config import Config
from msam_scale.config.deepspeed.optimizers import CLIENT_OPTIMIZER
from msam_scale.config.describe import shown
from msam_scale.config.keys import default_of, value_at
from msam_scale.config.load import Loaded, load
from msam_scale.initialization import check_batch_norm
from msam_scale.models import MODEL_SOURCES, ModelRequest, build_model, check_model_name
from msam_scale.optimization import check_schedule
from msam_scale.optimization.from_config import optimizer_builder
from msam_scale.training.data import RunData, open_run_split
from msam_scale.training.findings import Findings
from msam_scale.training.metrics import check_metrics
from msam_scale.training.run_folder import RunFolder
from msam_scale.training.tasks import ImageTask, Task, make_task

# Settings that may be to blame for what is found wrong with another one.
_MODEL_KEYS = ("model.source", "model.args")
_IMAGE_KEYS = (*_MODEL_KEYS, "data.transform", "data.train")
_BATCH_KEYS = ("batch.size", "batch.chunk", "objective.micro_batches", "objective.algorithm")
_LENGTH_KEYS = ("training.steps", "training.epochs", "schedule.name")


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to start.

    Attributes:
        config: checked for this number of ranks.
        data: what it trains and evaluates on.
        model: freshly initialised, on the CPU.
        steps_per_epoch: full mini-batches of an epoch.
        num_steps: optimizer steps of the run.
        folder: the run's folder and what is in it already.
        notes: what the config means that its author may not expect, a line each.
        anew: the layers that pretrained weights leave at their initial values.
    """

    config: Config
    data: RunData
    model: nn.Module
    steps_per_epoch: int
    num_steps: int
    folder: RunFolder
    notes: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()


def prepare_run(
    source: str | Path,
    *,
    overrides: Iterable[str] = (),
    world_size: int,
    tries_model: bool = True,
    allow_code: bool = True,
) -> PreparedRun:
    """Loads the config, opens the data, builds the model, finds the checkpoint; writes nothing.

    Args:
        source: a config file.
        overrides: settings that go before the file's.
        world_size: ranks.
        tries_model: whether the model is given a sample, which one rank does for all.
        allow_code: whether the config may consent to code and commands that it names; not where it
            came with a run.

    Raises:
        ConfigError: everything that is wrong, together.
    """
    loaded = load(
        source,
        overrides=overrides,
        world_size=world_size,
        for_training=True,
        allow_code=allow_code,
    )
    prepared = _prepare(loaded, world_size=world_size, tries_model=tries_model)
    assert prepared is not None
    return prepared


def check_run(
    source: str | Path,
    *,
    overrides: Iterable[str] = (),
    world_size: int | None = None,
    with_data: bool = True,
) -> Loaded:
    """Refuses what `prepare_run` refuses, as far as it can be known.

    A config that names no data, such as one for `initialize`, need not have what only a run needs.

    Args:
        source: as for `prepare_run`.
        overrides: as for `prepare_run`.
        world_size: ranks; None: what holds for any number of them.
        with_data: whether the data that the config names have to be there.

    Raises:
        ConfigError: everything that is wrong, together.
    """
    overrides = tuple(overrides)
    loaded = load(source, overrides=overrides, world_size=world_size)
    if loaded.config.data.train is not None:
        loaded = load(source, overrides=overrides, world_size=world_size, for_training=True)
    _prepare(loaded, world_size=world_size or 1, with_data=with_data)
    return loaded


def _prepare(
    loaded: Loaded, *, world_size: int, with_data: bool = True, tries_model: bool = True
) -> PreparedRun | None:
    """A run, or None where there are no data to look at."""
    config, findings = loaded.config, Findings(loaded.located)
    train = data = model = folder = None
    anew: list[str] = []
    if with_data and config.data.train is not None:
        with findings.collected("data.train"):
            train = open_run_split(config.data.train, config)
    if train is not None:
        data = _open_data(config, train, findings=findings)
    else:
        with findings.collected("data.transform"):
            transform_preset(config.data.transform)
        with findings.collected("data.order"):
            check_order(config.data.order)
    with findings.collected("objective.ascent"):
        ascent_rule(config.objective.ascent)
    if config.optimizer.name != CLIENT_OPTIMIZER:
        with findings.collected("optimizer.name"):
            optimizer_builder(config)
    steps_per_epoch = num_steps = None
    if train is not None:
        with findings.collected("batch.size", related=("data.train",)):
            steps_per_epoch = _steps_per_epoch(config, train.index)
            num_steps = config.training.num_steps(steps_per_epoch)
            with findings.collected("schedule.warmup", related=_LENGTH_KEYS):
                check_schedule(config.schedule, num_steps=num_steps)
            with findings.collected("data.order", related=("data.train", "batch.size")):
                _check_order(config, train.index)
    if config.data.train is not None:
        with findings.collected("run.name"):
            fingerprint = None if train is None else train.index.fingerprint
            folder = RunFolder.find(
                config, fingerprint=fingerprint, steps_per_epoch=steps_per_epoch
            )
    if config.model.name is not None:
        with findings.collected("model.name", related=_MODEL_KEYS):
            check_model_name(config.model.source, config.model.name)
            description = _stand_in(config) if data is None else data.task.description()
            checkpoint = None if folder is None else folder.weights_from
            request = _request(config, description, checkpoint=checkpoint)
            model = build_model(config.model.source, request, seed=config.run.seed)
            anew = request.anew
            with findings.collected("batch.norm_samples", related=_BATCH_KEYS):
                check_batch_norm(model, config, world_size=world_size)
            if data is not None and tries_model:
                with findings.collected(
                    "model.name", related=(*_MODEL_KEYS, "data.transform", "data.train")
                ):
                    data.task.check_model(model)
    findings.raise_all()
    if data is None:
        return None
    assert model is not None
    assert folder is not None
    assert steps_per_epoch is not None
    assert num_steps is not None
    return PreparedRun(
        config=config,
        data=data,
        model=model,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        folder=folder,
        notes=loaded.notes,
        anew=tuple(anew),
    )


def _open_data(config: Config, train: Split, *, findings: Findings) -> RunData | None:
    task: Task | None = None
    val = None
    with findings.collected("data.transform", related=("data.train",)):
        task = make_task(train, transform=config.data.transform)
    if config.data.val is not None:
        with findings.collected("data.val"):
            val = open_run_split(config.data.val, config)
            if task is not None:
                task.check_validation(val)
    if task is None:
        return None
    values = config.to_dict()
    for key in task.ignored_settings:
        if (value := value_at(values, key)) != default_of(key):
            with findings.collected(key):
                raise UserError(f"{shown(value)} has no effect on {task.kind}; leave it out")
    with findings.collected("training.metrics", related=("data.train",)):
        check_metrics(config.training.metrics, num_classes=task.num_classes)
    return RunData(train=train, val=val, task=task)


def _check_order(config: Config, index: SampleIndex) -> None:
    sample_order(config.data.order, index=index, seed=config.run.seed, batch_size=config.batch.size)


def _stand_in(config: Config) -> dict[str, Any]:
    """What a model is built for where there are no data: the number of classes is any."""
    kind = MODEL_SOURCES[config.model.source].kind
    num_classes = config.model.args.get("num_classes", 2)
    channels = 3 if kind == ImageTask.kind else None
    return {"kind": kind, "num_classes": num_classes, "num_channels": channels}


def _request(
    config: Config, description: dict[str, Any], *, checkpoint: Path | None
) -> ModelRequest:
    # A checkpoint has all weights: the file or hub that they once came from may be gone.
    starts = checkpoint is None
    weights = config.model.weights if starts else None
    settings = None
    if checkpoint is not None:
        settings = Progress.read(checkpoint).extra.get("model_settings")
    return ModelRequest(
        name=str(config.model.name),
        **description,
        arguments=config.model.args,
        pretrained=config.model.pretrained and starts,
        settings=settings,
        checkpoint=checkpoint,
        weights=None if weights is None else Path(weights).expanduser(),
    )


def _steps_per_epoch(config: Config, index: SampleIndex) -> int:
    steps = index.num_samples // config.batch.size
    if not steps:
        raise UserError(
            f"{config.batch.size} is more than the {index.num_samples} samples of "
            f"{index.directory}; at most {index.num_samples} works"
        )
    return steps
