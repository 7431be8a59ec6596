"""Turns a model's dropout and batch norm layers into ones that obey the engine's passes."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data_pipelines.errors import UserError
from msam_scale.layers.ghost_batch_norm import GHOST_CLASSES, GhostNormalization
from msam_scale.layers.keyed_dropout import KEYED_CLASSES, KeyedMask
from msam_scale.layers.pass_context import PassContext
from msam_scale.layers.running_statistics import RunningStatistics

_logger = logging.getLogger("msam_scale")

_Classes = Mapping[type[nn.Module], type[nn.Module]]

# Whose passes a model's layers obey, also where it has no layer of ours to tell.
_owners: weakref.WeakKeyDictionary[nn.Module, PassContext] = weakref.WeakKeyDictionary()


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model normalises over samples, so that `batch.norm_samples` matters."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def install_layers(model: nn.Module, context: PassContext) -> RunningStatistics:
    """Changes the class of each dropout and batch norm layer in place, as `fully_shard` does.

    Parameters, buffers and names stay as they are, and outside the engine's passes the layers
    behave as before. A layer's number is its place among the keyed layers of `model.modules()`.
    A model that an earlier engine has trained may be given to a new one; the earlier one then
    refuses to go on.

    Raises:
        UserError: the model holds a batch norm whose statistics would depend on the layout.
    """
    if (earlier := _owners.get(model)) is not None:
        earlier.superseded = True
    _owners[model] = context
    keyed: list[KeyedMask] = []
    ghosts: list[GhostNormalization] = []
    classes = _layer_classes()
    for name, module in model.named_modules():
        _check_module(name, module, classes=classes)
        if isinstance(module, KeyedMask | GhostNormalization):
            module.pass_context.superseded = True  # an earlier engine's, or a copy of it
        else:
            module.__class__ = classes.get(type(module), type(module))
        if isinstance(module, KeyedMask):
            module.pass_context, module.layer = context, len(keyed)
            keyed.append(module)
        elif isinstance(module, GhostNormalization):
            module.pass_context, module.sums = context, None
            ghosts.append(module)
    return RunningStatistics(ghosts)


def _layer_classes() -> _Classes:
    """What becomes what. A model with timm's layers has imported them; others do without."""
    if "timm.layers" not in sys.modules:
        return {**KEYED_CLASSES, **GHOST_CLASSES}
    from msam_scale.layers.timm_layers import TIMM_CLASSES

    return {**KEYED_CLASSES, **GHOST_CLASSES, **TIMM_CLASSES}


def _check_module(name: str, module: nn.Module, *, classes: _Classes) -> None:
    """Refuses, or speaks of, layers that would tie the result to the layout."""
    if isinstance(module, _BatchNorm) and not (
        isinstance(module, GhostNormalization) or type(module) in classes
    ):
        supported = ", ".join(
            sorted(cls.__name__ for cls in classes if issubclass(cls, _BatchNorm))
        )
        if isinstance(module, nn.SyncBatchNorm):
            raise UserError(
                f"{name}: {type(module).__name__} would tie the result to the layout; leave "
                "BatchNorm as it is, without convert_sync_batchnorm: here it normalises over "
                "batch.norm_samples samples (the whole micro-batch by default), on any number of "
                "ranks alike"
            )
        raise UserError(
            f"{name}: {type(module).__name__} would tie the result to the layout; "
            f"ghost batch normalization is available for {supported}"
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        raise UserError(
            f"{name}: max_norm: {module.max_norm} rescales the weights in the forward, differently "
            "on each rank; an embedding without max_norm works"
        )
    if (
        isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
        and not module.self_attn.batch_first
        and module.dropout.p > 0
    ):
        _logger.warning(
            "%s takes (tokens, samples, …): its dropout masks are keyed by the first dimension, so "
            "they change with the layout; batch_first=True keeps them independent of it.",
            name,
        )
