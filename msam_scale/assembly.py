"""Puts an engine together from a checked config and a checked model."""

from __future__ import annotations

import torch
from torch import nn

from msam_scale.config import Config
from msam_scale.engine import Engine
from msam_scale.layers import PassContext, install_layers
from msam_scale.layers.block_wrapping import wrap_blocks
from msam_scale.layers.blocks import find_blocks
from msam_scale.layers.spectral_norm import SpectralVectors
from msam_scale.losses import LossFunction
from msam_scale.materialization import check_can_materialize
from msam_scale.optimization import bind_schedule, check_schedule
from msam_scale.optimization.from_config import OptimizerBuilder
from msam_scale.phases import Phases, norm_samples
from msam_scale.precision import Precision, check_parameters
from msam_scale.ranks import Ranks
from msam_scale.sharding import STRATEGIES, ShardingRequest


def assemble(
    model: nn.Module,
    *,
    config: Config,
    phases: Phases,
    ranks: Ranks,
    loss_fn: LossFunction,
    build_optimizer: OptimizerBuilder,
    num_steps: int | None,
) -> Engine:
    """Installs the layers that obey passes, wraps the blocks, and shards the model. Collective.

    Raises:
        UserError: the model cannot be trained as the config asks.
    """
    precision = check_parameters(model, name=config.precision)
    check_can_materialize(model)
    check_schedule(config.schedule, num_steps=num_steps)
    context = PassContext(
        config.run.seed,
        norm_samples=norm_samples(config),
        device=ranks.device,
    )
    statistics = install_layers(model, context)
    vectors = SpectralVectors(model, context)
    blocks = find_blocks(model, names=config.sharding.blocks)
    every = config.training.activation_checkpointing
    wrap_blocks(
        model,
        blocks,
        context=context,
        checkpoint_every=int(every) if every else None,
        compiles=config.training.compile,
    )
    whole_state = _types_and_shapes(model, precision)
    sharding = STRATEGIES[config.sharding.strategy](
        ShardingRequest(
            model=model,
            blocks=blocks,
            ranks=ranks,
            plan=phases.plan(0),
            precision=precision,
            config=config,
            build_optimizer=build_optimizer,
        )
    )
    return Engine(
        model,
        config=config,
        phases=phases,
        ranks=ranks,
        precision=precision,
        sharding=sharding,
        loss_fn=loss_fn,
        whole_state=whole_state,
        context=context,
        statistics=statistics,
        vectors=vectors,
        schedule=bind_schedule(
            config.schedule, sharding.optimizer.param_groups, num_steps=num_steps
        ),
    )


def _types_and_shapes(model: nn.Module, precision: Precision) -> dict[str, torch.Tensor]:
    """The state dict to be, as meta tensors; `place` widens floating types to float64 if asked."""
    widens = precision.parameters is torch.float64
    return {
        name: torch.empty_like(
            value,
            device="meta",
            dtype=torch.float64 if widens and value.is_floating_point() else None,
        )
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
