"""Starts the DeepSpeed engine of a model that is in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.batch_plan import divisors
from msam_scale.config.deepspeed.engine_settings import engine_settings
from msam_scale.ranks import timeout_of_groups
from msam_scale.sharding.interface import ShardingRequest
from msam_scale.sharding.zero import private_api

# They treat each element by itself. Others look at whole parameters, of which ZeRO hands them flat
# pieces, so that their result would depend on the number of ranks.
_ELEMENTWISE = frozenset(
    {
        "SGD",
        "Adam",
        "AdamW",
        "Adagrad",
        "Adadelta",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "ASGD",
        "Rprop",
        "FusedAdam",
        "DeepSpeedCPUAdam",
        "FusedLion",
        "DeepSpeedCPULion",
        "DeepSpeedCPUAdagrad",
    }
)


def settings_for_deepspeed(request: ShardingRequest) -> dict[str, Any]:
    """The dict that `deepspeed.initialize` and `deepspeed.zero.Init` take."""
    chunk = min(request.config.batch.chunk or request.plan.slice_size, request.plan.slice_size)
    return engine_settings(request.config, world_size=request.ranks.size, chunk_samples=chunk)


def check_secondary_shards(settings: dict[str, Any], *, shard_group_size: int) -> None:
    """Refuses secondary shards (hpZ) whose ranks are not part of one shard group.

    Raises:
        UserError: naming the sizes that fit.
    """
    size = settings["zero_optimization"].get("zero_hpz_partition_size", 1)
    if size > 1 and shard_group_size % size:
        raise UserError(
            f"sharding.deepspeed.zero_optimization.zero_hpz_partition_size: {size} does not divide "
            f"the {shard_group_size} ranks of a shard group; values that fit: "
            f"{', '.join(map(str, divisors(shard_group_size)))}"
        )


def start_engine(
    request: ShardingRequest, *, parameters: list[nn.Parameter], settings: dict[str, Any]
) -> Any:
    """`deepspeed.initialize` with the optimizer that the config names. Collective.

    Raises:
        UserError: the optimizer's result would depend on the number of ranks, or DeepSpeed
            refuses the settings; its own words are in the message.
    """
    import deepspeed

    optimizer = request.build_optimizer(parameters)
    _check_elementwise(optimizer)
    with private_api.only_errors_logged(), private_api.without_broadcast():
        try:
            engine, *_ = deepspeed.initialize(
                model=request.model, optimizer=optimizer, config=settings, dist_init_required=False
            )
        except ValueError as error:  # a type that the device lacks, above all
            raise UserError(
                f"sharding.strategy: DeepSpeed refuses these settings: {error}"
            ) from error
    return engine


def join_deepspeed(request: ShardingRequest) -> None:
    """Lets DeepSpeed use the process group that the engine is in."""
    private_api.check_deepspeed()
    private_api.prepare_process()
    private_api.forget_secondary_groups()
    request.ranks.process_group_of(request.ranks.size)
    private_api.forget_groups_of_before()
    import deepspeed

    with private_api.only_errors_logged():
        deepspeed.init_distributed(
            dist_backend="nccl" if request.ranks.device.type == "cuda" else "gloo",
            dist_init_required=False,
            verbose=False,
        )
    private_api.make_groups_with(timeout_of_groups())


def _check_elementwise(optimizer: torch.optim.Optimizer) -> None:
    name = type(optimizer).__name__
    if name not in _ELEMENTWISE:
        raise UserError(
            f"optimizer.name: {name} is not known to treat each element by itself, and ZeRO hands "
            "it flat pieces of the parameters, so the result could depend on the number of ranks; "
            f"with ZeRO these work: {', '.join(sorted(_ELEMENTWISE))}"
        )
