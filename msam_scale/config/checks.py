"""The rules between settings, and the functions that apply them to a config."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from msam_scale.config.check_registry import Check, check, run_checks
from msam_scale.config.describe import listed
from msam_scale.config.not_yet import NOT_YET_CHECKS
from msam_scale.config.plan_checks import plan_checks
from msam_scale.config.problems import ConfigError, Problem
from msam_scale.config.schema import Config
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
    checks = [*_ALWAYS, *WITHOUT_EFFECT, *NOT_YET_CHECKS]
    checks += plan_checks(world_size=1 if world_size is None else world_size)
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


@check(_ALWAYS, algorithm="objective.algorithm", micro_batches="objective.micro_batches")
def _micro_batches_fit_the_algorithm(
    *, algorithm: str, micro_batches: int | None
) -> Iterator[Problem]:
    key = "objective.micro_batches"
    if algorithm == "msam" and micro_batches is None:
        yield Problem(
            key,
            "is missing, and objective.algorithm: msam needs it: the paper's m, the number of "
            "parts of the mini-batch that are perturbed on their own; "
            "a whole number that divides batch.size works (1 is SAM)",
        )
    if algorithm == "sam" and micro_batches not in (None, 1):
        yield Problem(
            key,
            f"{micro_batches} contradicts objective.algorithm: sam, which is msam with one "
            "micro-batch; leave it out, or set objective.algorithm: msam",
        )


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
        f"{chunk} is not a multiple of batch.norm_samples {norm_samples}; "
        f"{listed(nearest, last='or')} works",
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
            f"{warmup} steps is not shorter than training.steps: {steps}; "
            f"at most {steps - 1} steps or a fraction below 1 works",
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


@check(_FOR_TRAINING, lr="optimizer.lr")
def _learning_rate_is_given(*, lr: float | None) -> Iterator[Problem]:
    if lr is None:
        yield Problem("optimizer.lr", "is missing, and training needs it; a number ≥ 0 works")


@check(_FOR_TRAINING, epochs="training.epochs", steps="training.steps")
def _length_is_given(*, epochs: int | None, steps: int | None) -> Iterator[Problem]:
    if epochs is None and steps is None:
        yield Problem(
            "training.epochs",
            "is missing, and training needs a length; training.epochs or training.steps works",
        )
