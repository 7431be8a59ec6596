"""The way in: a model and a config become an engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from data_pipelines.errors import UserError
from msam_scale import ranks as ranks_module
from msam_scale.assembly import assemble
from msam_scale.batch_plan import BatchPlan, divisors
from msam_scale.config import Config
from msam_scale.config.load import load
from msam_scale.engine import Engine
from msam_scale.layers import stateless_random
from msam_scale.layers.install import has_batch_norm
from msam_scale.losses import LossFunction, default_loss
from msam_scale.model_checks import check_model, check_ranks_agree
from msam_scale.optimization.from_config import (
    OptimizerSource,
    optimizer_builder,
    say_what_is_unused,
)
from msam_scale.phases import Phases, batch_plans, norm_samples
from msam_scale.self_test import check_sharding

_logger = logging.getLogger("msam_scale")


def initialize(
    model: nn.Module,
    *,
    config: str | Path | Mapping[str, Any] | Config,
    loss_fn: LossFunction | None = None,
    optimizer: OptimizerSource | None = None,
    num_steps: int | None = None,
) -> Engine:
    """Builds the engine that trains `model` in place. Collective: every rank calls it.

    Joins the process group that the launcher's environment describes where the caller has not
    initialised one; moves the model to this rank's device, laid out as `sharding.strategy` says,
    and gives every rank the parameters of rank 0.

    Args:
        model: float32 or float64, on any device; on the meta device it takes no memory, and gets
            its values block by block. Its dropout and batch norm layers change class.
        config: a YAML or JSON file, the same as a dict, or a `Config`.
        loss_fn: `loss_fn(model, batch)` returns the mean loss of the samples given or, where
            samples weigh differently (tokens, say), a pair (sum, weight) of scalars; by default
            cross-entropy with the configured label smoothing for `(inputs, labels)`, and
            `model(**batch).loss` for a dict, whose samples weigh by their labels.
        optimizer: an optimizer class, which takes the config's `optimizer` section, or an
            optimizer or a function of the parameters, which go before that section; by default
            `optimizer.name` of torch.optim.
        num_steps: optimizer steps of the whole run, for schedules and phases; default
            `training.steps`.

    Raises:
        UserError: the config or the model cannot be trained as asked; says what would work.
    """
    stateless_random.check_torch()
    check_model(model)
    if loss_fn is not None and not callable(loss_fn):
        raise UserError(f"loss_fn: {loss_fn!r} is not a function of (model, batch)")
    ranks = ranks_module.join()
    loaded = load(config, world_size=ranks.size)
    settings = loaded.config
    phases = Phases(
        settings,
        world_size=ranks.size,
        num_steps=settings.training.steps if num_steps is None else num_steps,
    )
    check_batch_norm(model, settings, world_size=ranks.size)
    if ranks.is_first:
        for note in loaded.notes:
            _logger.warning("%s", note)
        say_what_is_unused(settings, optimizer)
    check_ranks_agree(model, settings, ranks=ranks)
    check_sharding(settings, ranks=ranks)
    return assemble(
        model,
        config=settings,
        phases=phases,
        ranks=ranks,
        loss_fn=loss_fn or default_loss(label_smoothing=settings.training.label_smoothing),
        build_optimizer=optimizer_builder(settings, optimizer),
        num_steps=phases.num_steps,
    )


def check_batch_norm(model: nn.Module, config: Config, *, world_size: int) -> None:
    """Refuses chunks and slices that do not hold whole ghost batches.

    Raises:
        UserError: naming the values of `batch.norm_samples` or `batch.chunk` that fit.
    """
    if not has_batch_norm(model):
        if config.batch.norm_samples is not None:
            raise UserError(
                f"batch.norm_samples: {config.batch.norm_samples} has no effect on a model "
                "without batch normalization; remove it"
            )
        return
    for plan in batch_plans(config, world_size=world_size).values():
        _check_ghost_batches(config, plan, samples=norm_samples(config))


def _check_ghost_batches(config: Config, plan: BatchPlan, *, samples: int) -> None:
    if plan.slice_size % samples:
        fitting = divisors(plan.slice_size)
        raise UserError(
            f"batch.norm_samples: {samples}"
            f"{'' if config.batch.norm_samples else ' (the whole micro-batch, by default)'} "
            f"samples are normalised together, but a rank works on {plan.slice_size} samples of a "
            f"micro-batch; values that fit: {', '.join(map(str, fitting))}"
        )
    chunk = min(config.batch.chunk or plan.slice_size, plan.slice_size)
    if chunk % samples:
        fitting = [n * samples for n in divisors(plan.slice_size // samples)]
        raise UserError(
            f"batch.chunk: {chunk} is not a multiple of the {samples} samples that batch "
            f"normalization normalises together; values that fit: {', '.join(map(str, fitting))}"
        )
