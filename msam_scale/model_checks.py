"""What a model must be, and must be on every rank alike, before an engine is made of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from data_pipelines.errors import UserError
from msam_scale.config import Config
from msam_scale.ranks import Ranks

_logger = logging.getLogger("msam_scale")

_MOST_LISTED = 4


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


class TrainingMode:
    """Says once that a model is trained in evaluation mode, which is seldom meant.

    `from_pretrained` leaves a model there, and so does an evaluation. Batch norms that are in
    evaluation mode by themselves, and parts without trainable parameters, are meant to be.
    """

    def __init__(self, model: nn.Module, *, speaks: bool) -> None:
        self._model = model
        self._looks_inside, self._speaks = True, speaks

    def look(self) -> None:
        """To be called before each step: at all parts before the first, then at the model alone."""
        if not self._speaks or (self._model.training and not self._looks_inside):
            return
        self._looks_inside = False
        if asleep := list(_in_evaluation_mode(self._model, "")):
            self._speaks = False
            more = ", …" if len(asleep) > _MOST_LISTED else ""
            _logger.warning(
                "%s in evaluation mode, in which from_pretrained and an evaluation leave it: it is "
                "trained without dropout, and its batch norms keep their running statistics. "
                "engine.train() before the step puts the whole model in training mode.",
                "The model is"
                if asleep == [""]
                else f"A part of the model ({', '.join(asleep[:_MOST_LISTED])}{more}) is",
            )


def _in_evaluation_mode(module: nn.Module, name: str) -> Iterator[str]:
    """The outermost parts that are trained in evaluation mode, by name; the whole is the empty."""
    if isinstance(module, _BatchNorm) or not any(p.requires_grad for p in module.parameters()):
        return
    if not module.training:
        yield name
        return
    for child_name, child in module.named_children():
        yield from _in_evaluation_mode(child, f"{name}.{child_name}" if name else child_name)
