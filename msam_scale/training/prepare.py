"""Everything that can be wrong with a run is found here, before anything starts or is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data_pipelines import SampleIndex, Split, sample_order, transform_preset
from data_pipelines.errors import UserError
from msam_scale.ascent import ascent_rule
from msam_scale.checkpoint import Progress
from msam_scale.config import Config, load_config
from msam_scale.config.describe import shown
from msam_scale.config.keys import default_of, value_at
from msam_scale.initialization import check_batch_norm
from msam_scale.models import ModelRequest, build_model, check_model_name
from msam_scale.optimization import check_schedule
from msam_scale.optimization.from_config import optimizer_builder
from msam_scale.training.data import RunData, open_run_split
from msam_scale.training.findings import Findings
from msam_scale.training.metrics import check_metrics
from msam_scale.training.run_folder import RunFolder
from msam_scale.training.tasks import Task, make_task


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
    """

    config: Config
    data: RunData
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
    findings = Findings(source, overrides=overrides)
    train = model = folder = None
    with findings.collected("data.train"):
        train = open_run_split(str(config.data.train), config)
    data = _open_data(config, train, findings=findings)
    with findings.collected("objective.ascent"):
        ascent_rule(config.objective.ascent)
    with findings.collected("optimizer.name"):
        optimizer_builder(config)
    steps_per_epoch = num_steps = None
    if train is not None:
        with findings.collected("batch.size"):
            steps_per_epoch = _steps_per_epoch(config, train.index)
            num_steps = config.training.num_steps(steps_per_epoch)
            with findings.collected("schedule.warmup"):
                check_schedule(config.schedule, num_steps=num_steps)
            with findings.collected("data.order"):
                _check_order(config, train.index)
    with findings.collected("run.name"):
        fingerprint = None if train is None else train.index.fingerprint
        folder = RunFolder.find(config, fingerprint=fingerprint, steps_per_epoch=steps_per_epoch)
    with findings.collected("model.name"):
        check_model_name(config.model.source, str(config.model.name))
        if data is not None:
            model = _build(config, data, checkpoint=None if folder is None else folder.weights_from)
            with findings.collected("model.name"):
                data.task.check_model(model)
            with findings.collected("batch.norm_samples"):
                check_batch_norm(model, config, world_size=world_size)
    findings.raise_all()
    assert data is not None
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
    )


def _open_data(config: Config, train: Split | None, *, findings: Findings) -> RunData | None:
    task: Task | None = None
    val = None
    with findings.collected("data.transform"):
        if train is None:
            transform_preset(config.data.transform)
        else:
            task = make_task(train, transform=config.data.transform)
    if config.data.val is not None:
        with findings.collected("data.val"):
            val = open_run_split(config.data.val, config)
            if task is not None:
                task.check_validation(val)
    if train is None or task is None:
        return None
    values = config.to_dict()
    for key in task.ignored_settings:
        if (value := value_at(values, key)) != default_of(key):
            with findings.collected(key):
                raise UserError(f"{shown(value)} has no effect on {task.kind}; leave it out")
    with findings.collected("training.metrics"):
        check_metrics(config.training.metrics, num_classes=task.num_classes)
    return RunData(train=train, val=val, task=task)


def _check_order(config: Config, index: SampleIndex) -> None:
    sample_order(config.data.order, index=index, seed=config.run.seed, batch_size=config.batch.size)


def _build(config: Config, data: RunData, *, checkpoint: Path | None) -> nn.Module:
    # A checkpoint has all weights: the file or hub that they once came from may be gone.
    starts = checkpoint is None
    weights = config.model.weights if starts else None
    settings = None
    if checkpoint is not None:
        settings = Progress.read(checkpoint).extra.get("model_settings")
    request = ModelRequest(
        name=str(config.model.name),
        **data.task.description(),
        arguments=config.model.args,
        pretrained=config.model.pretrained and starts,
        settings=settings,
        weights=None if weights is None else Path(weights).expanduser(),
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
