"""Looks at the first forward for what would tie the result to the layout."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.layers.generators import Generators

_logger = logging.getLogger("msam_scale")


@contextmanager
def watched_forward(
    model: nn.Module, generators: Generators, *, speaks: bool, gathers: bool
) -> Iterator[None]:
    """Checks one training forward.

    Says so, once, where the model draws random numbers that no layer has keyed by sample: their
    masks are keyed by slice, so they change with `batch.chunk` and the number of ranks.

    Args:
        model: what is about to run.
        generators: those that it may draw from.
        speaks: whether this rank says what it finds.
        gathers: the forward gathers sharded parameters, which looks like writing to them, so only
            buffers are watched.

    Raises:
        UserError: the forward writes to a buffer or a parameter, which would then depend on how
            many forwards a rank does. A write that only later forwards do is not seen.
    """
    held = _held(model, with_parameters=not gathers)
    versions = {name: tensor._version for name, tensor in held.items()}
    states = generators.states()
    yield
    after = _held(model, with_parameters=not gathers)
    for name, tensor in held.items():
        if after.get(name) is not tensor or tensor._version != versions[name]:
            raise UserError(
                f"{name}: the model writes to it in its forward, so its value would depend on "
                "chunks and ranks; only batch normalization's running statistics are kept "
                "independent of them"
            )
    drew = any(
        not torch.equal(before, after)
        for before, after in zip(states, generators.states(), strict=True)
    )
    if drew and speaks:
        _logger.warning(
            "The model draws random numbers outside of Dropout and DropPath layers (dropout "
            "inside fused attention, for example). Both passes of a micro-batch draw the same "
            "ones, keyed by (seed, step, slice): they change with batch.chunk and with the number "
            "of ranks."
        )


def _held(model: nn.Module, *, with_parameters: bool) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters()) if with_parameters else {}
    return {**dict(model.named_buffers()), **parameters}
