"""The rules between settings, and the functions that apply them to a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from msam_scale.config.check_registry import Check, check, run_checks
from msam_scale.config.deepspeed.agreement import agreement_check
from msam_scale.config.deepspeed.optimizers import CLIENT_OPTIMIZER, DEEPSPEED_OPTIMIZERS
from msam_scale.config.deepspeed.schedules import (
    SCHEDULE_ARGUMENTS,
    argument_complaints,
    top_rate,
)
from msam_scale.config.describe import listed, shown
from msam_scale.config.keys import default_of
from msam_scale.config.objective_checks import OBJECTIVE_CHECKS
from msam_scale.config.plan_checks import SHARDED_PARAMETERS, plan_checks
from msam_scale.config.problems import ConfigError, Problem
from msam_scale.config.schema import Config
from msam_scale.config.weight_checks import WEIGHT_CHECKS
from msam_scale.config.without_effect import WITHOUT_EFFECT

_ALWAYS: list[Check] = []
_FOR_TRAINING: list[Check] = []


def find_problems(
    config: Config,
    *,
    world_size: int | None,
    for_training: bool,
    unsettled: AbstractSet[str] = frozenset(),
) -> list[Problem]:
    """Everything that is wrong between the settings of a config.

    Args:
        config: the settings.
        world_size: ranks that the batch has to be laid out on; `None`: what holds for any number.
        for_training: whether the settings that only training needs have to be there.
        unsettled: settings that are not known; checks that read one of them are left out.
    """
    checks = [*_ALWAYS, *OBJECTIVE_CHECKS, *WEIGHT_CHECKS, *WITHOUT_EFFECT]
    checks += plan_checks(world_size=world_size)
    checks.append(agreement_check(world_size=world_size))
    if for_training:
        checks += _FOR_TRAINING
    return list(run_checks(checks, config=config, unsettled=unsettled))


def check_config(config: Config, *, world_size: int | None = None) -> None:
    """Refuses a config whose settings do not go together.

    Args:
        config: the settings.
        world_size: ranks that the batch has to be laid out on; `None`: what holds for any number.

    Raises:
        ConfigError: with everything that is wrong.
    """
    problems = find_problems(config, world_size=world_size, for_training=False)
    if problems:
        raise ConfigError(problems)


def check_for_training(config: Config) -> None:
    """Refuses a config that does not say all that a training run has to know.

    Raises:
        ConfigError: with everything that is missing.
    """
    problems = list(run_checks(_FOR_TRAINING, config=config))
    if problems:
        raise ConfigError(problems)


@check(_ALWAYS, chunk="batch.chunk", norm_samples="batch.norm_samples")
def _chunk_holds_whole_ghost_batches(
    *, chunk: int | None, norm_samples: int | None
) -> Iterator[Problem]:
    if chunk is None or norm_samples is None or chunk % norm_samples == 0:
        return
    below = chunk // norm_samples * norm_samples
    nearest = [str(size) for size in (below, below + norm_samples) if size]
    yield Problem(
        "batch.chunk",
        f"a chunk of {chunk} is not a multiple of batch.norm_samples: {norm_samples}; chunks of "
        f"{listed(nearest, last='or')} work",
        related=("batch.norm_samples",),
    )


@check(_ALWAYS, epochs="training.epochs", steps="training.steps")
def _one_length(*, epochs: int | None, steps: int | None) -> Iterator[Problem]:
    if epochs is not None and steps is not None:
        yield Problem(
            "training.steps",
            f"{steps} is a second length beside training.epochs: {epochs}; give one of them",
        )


@check(_ALWAYS, warmup="schedule.warmup", steps="training.steps")
def _warmup_ends_before_training(*, warmup: float, steps: int | None) -> Iterator[Problem]:
    if steps is not None and warmup >= 1 and warmup >= steps:
        yield Problem(
            "schedule.warmup",
            f"a warm-up of {warmup} steps is not shorter than training.steps: {steps}; "
            f"at most {steps - 1} steps or a fraction below 1 works",
            related=("training.steps",),
        )


@check(
    _ALWAYS,
    name="schedule.name",
    arguments="schedule.args",
    warmup="schedule.warmup",
    lr="optimizer.lr",
)
def _schedule_takes_its_arguments(
    *, name: str, arguments: Mapping[str, Any], warmup: float, lr: float | None
) -> Iterator[Problem]:
    if name not in SCHEDULE_ARGUMENTS:
        if arguments:
            yield Problem(
                "schedule.args",
                f"{shown(arguments)} has no effect with schedule.name: {name}; leave it out, or "
                f"name one of DeepSpeed's schedules: {listed(list(SCHEDULE_ARGUMENTS), last='or')}",
            )
        return
    for argument, complaint in argument_complaints(name, arguments):
        yield Problem(f"schedule.args.{argument}" if argument else "schedule.args", complaint)
    if warmup:
        yield Problem(
            "schedule.warmup",
            f"{warmup} has no effect with schedule.name: {name}; leave it out: what {name} takes "
            "is in schedule.args",
        )
    if lr is not None and (rate := top_rate(name, arguments)):
        yield Problem(
            "optimizer.lr",
            f"{lr} has no effect: {name} sets the rate, {rate[0]}: {rate[1]}; leave it out and "
            f"set schedule.args.{rate[0]}",
        )


@check(_ALWAYS, name="optimizer.name", strategy="sharding.strategy")
def _deepspeeds_optimizers_are_sharded_by_deepspeed(
    *, name: str, strategy: str
) -> Iterator[Problem]:
    if name in DEEPSPEED_OPTIMIZERS and not strategy.startswith("zero"):
        yield Problem(
            "optimizer.name",
            f"{name} is DeepSpeed's own and works with sharding.strategy: zero1, zero2 or zero3, "
            f"not {strategy}; an optimizer of torch.optim works with every strategy",
            related=("sharding.strategy",),
        )


@check(_ALWAYS, precision="precision", strategy="sharding.strategy")
def _deepspeed_has_no_float64(*, precision: str, strategy: str) -> Iterator[Problem]:
    if precision == "float64" and strategy.startswith("zero"):
        yield Problem(
            "precision",
            f"float64 does not work with sharding.strategy: {strategy}, because DeepSpeed keeps "
            "weights in float32; replicated and fsdp keep float64",
            related=("sharding.strategy",),
        )


@check(_ALWAYS, precision="precision", loss_scale="training.loss_scale")
def _loss_scale_has_an_effect(
    *, precision: str, loss_scale: Mapping[str, Any]
) -> Iterator[Problem]:
    default = default_of("training.loss_scale")
    changed = [key for key, value in loss_scale.items() if value != default[key]]
    if changed and precision != "float16":
        yield Problem(
            f"training.loss_scale.{changed[0]}",
            f"{shown(loss_scale[changed[0]])} has no effect with precision: {precision}; leave it "
            "out, or set precision: float16",
        )
    elif "static" in changed and len(changed) > 1:
        other = next(key for key in changed if key != "static")
        yield Problem(
            f"training.loss_scale.{other}",
            f"{shown(loss_scale[other])} has no effect with training.loss_scale.static; leave one "
            "of them out",
        )


@check(
    _ALWAYS,
    blocks="sharding.blocks",
    strategy="sharding.strategy",
    compiles="training.compile",
    checkpoints="training.activation_checkpointing",
)
def _blocks_have_an_effect(
    *, blocks: list[str] | None, strategy: str, compiles: bool, checkpoints: bool | int
) -> Iterator[Problem]:
    if blocks is None or strategy in SHARDED_PARAMETERS or compiles or checkpoints:
        return
    yield Problem(
        "sharding.blocks",
        f"{shown(blocks)} has no effect with sharding.strategy: {strategy} and neither "
        "training.compile nor training.activation_checkpointing; leave it out",
    )


@check(_ALWAYS, resume="checkpoint.resume")
def _to_resume_is_to_go_on(*, resume: str) -> Iterator[Problem]:
    if resume not in ("auto", "never"):
        yield Problem(
            "checkpoint.resume",
            f"{shown(resume)} is neither auto nor never; to start from another run's weights and "
            f"optimizer, checkpoint.start_from={resume[:200]} works, and a start after it goes on "
            "from the run's own checkpoints",
        )


@check(_FOR_TRAINING, name="model.name")
def _model_is_named(*, name: str | None) -> Iterator[Problem]:
    if name is None:
        yield Problem(
            "model.name", "is missing, and training needs it; the name of a model in model.source"
        )


@check(_FOR_TRAINING, train="data.train")
def _training_data_is_named(*, train: str | None) -> Iterator[Problem]:
    if train is None:
        yield Problem(
            "data.train", "is missing, and training needs it; a folder or pattern of shards works"
        )


@check(_FOR_TRAINING, name="optimizer.name")
def _optimizer_is_named(*, name: str) -> Iterator[Problem]:
    if name == CLIENT_OPTIMIZER:
        yield Problem(
            "optimizer.name",
            f"{name} is an optimizer that code passes to initialize, and training from the "
            "command line needs a name; one of torch.optim works, such as adamw",
        )


@check(
    _FOR_TRAINING,
    lr="optimizer.lr",
    schedule="schedule.name",
    arguments="schedule.args",
)
def _learning_rate_is_given(
    *, lr: float | None, schedule: str, arguments: Mapping[str, Any]
) -> Iterator[Problem]:
    if lr is None and top_rate(schedule, arguments) is None:
        yield Problem("optimizer.lr", "is missing, and training needs it; a number ≥ 0 works")


@check(_FOR_TRAINING, epochs="training.epochs", steps="training.steps")
def _length_is_given(*, epochs: int | None, steps: int | None) -> Iterator[Problem]:
    if epochs is None and steps is None:
        yield Problem(
            "training.epochs",
            "is missing, and training needs a length; training.epochs or training.steps works",
        )
