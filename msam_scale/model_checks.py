"""What a model must be, and must be on every rank alike, before an engine is made of it."""

from __future__ import annotations

import sys

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from data_pipelines.errors import UserError
from msam_scale.config import Config
from msam_scale.ranks import Ranks


def check_model(model: object) -> None:
    """Raises a UserError where `model` is no module, or one that distributes itself already."""
    if not isinstance(model, nn.Module):
        raise UserError(f"model: is a {type(model).__name__}; a torch.nn.Module works")
    wrappers: list[type] = [DistributedDataParallel, DataParallel]
    if (fsdp := sys.modules.get("torch.distributed.fsdp")) is not None:
        wrappers.append(fsdp.FSDPModule)  # a model that is one has imported it
    for name, module in model.named_modules():
        if isinstance(module, tuple(wrappers)):
            raise UserError(
                f"model: {name or 'it'} is wrapped in {type(module).__name__}, which would reduce "
                "gradients once more; pass the bare module"
            )


def check_ranks_agree(model: nn.Module, config: Config, *, ranks: Ranks) -> None:
    """Compares config and parameters of all ranks, whose gradients are about to be summed.

    Raises:
        UserError: on every rank; names the first difference.
    """
    if ranks.world is None:
        return
    own = {f"config {key}": repr(value) for key, value in config.to_dict().items()}
    for name, parameter in model.named_parameters():
        trained = "trained" if parameter.requires_grad else "frozen"
        own[f"parameter {name}"] = f"{tuple(parameter.shape)} {parameter.dtype} {trained}"
    all_ranks = ranks.gathered(own)
    for rank, other in enumerate(all_ranks):
        for key in {**all_ranks[0], **other}:
            if other.get(key) != all_ranks[0].get(key):
                raise UserError(
                    f"the ranks disagree: {key} is {all_ranks[0].get(key)} on rank 0 and "
                    f"{other.get(key)} on rank {rank}; every rank needs the same model and config"
                )
