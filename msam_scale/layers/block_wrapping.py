"""Activation checkpointing and compilation of a model's blocks, in place and under their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from data_pipelines.errors import UserError
from msam_scale.layers.pass_context import PassContext

# Under these names blocks of transformers get keys and values that they add to.
_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache")


@dataclass(frozen=True)
class _WrappedForward:
    """Stands in for a block's forward; hooks of the block, FSDP2's among them, stay outside."""

    original: Callable[..., Any]
    call: Callable[..., Any]

    def __call__(self, *inputs: Any, **named_inputs: Any) -> Any:
        return self.call(*inputs, **named_inputs)


def wrap_blocks(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    *,
    context: PassContext,
    checkpoint_every: int | None,
    compiles: bool,
) -> None:
    """Compiles the blocks, and makes some of them compute their activations twice.

    A checkpointed block keeps its inputs only. Both of its forwards draw the same random numbers:
    keyed layers by their key, others because torch's generators are restored by
    `torch.utils.checkpoint`, and the host's by the context.

    Args:
        model: what an earlier engine has wrapped in it is unwrapped first.
        blocks: of the model.
        context: of the passes; knows which call of a layer is computed again.
        checkpoint_every: every how many blocks one is checkpointed; None: none.
        compiles: whether their forwards are compiled. Equal blocks share the compiled code.
    """
    for module in model.modules():
        if isinstance(module.forward, _WrappedForward):
            module.forward = module.forward.original
    for index, block in enumerate(blocks):
        call = original = block.forward
        if compiles:
            call = torch.compile(call)
        if checkpoint_every is not None and index % checkpoint_every == 0:
            call = partial(_checkpointed, call, context)
        if call is not original:
            block.forward = _WrappedForward(original, call)


def _checkpointed(
    call: Callable[..., Any], context: PassContext, *inputs: Any, **named_inputs: Any
) -> Any:
    filled = [name for name in _CACHES if named_inputs.get(name) is not None]
    if filled and torch.is_grad_enabled():
        raise UserError(
            f"training.activation_checkpointing: a block is called with {filled[0]}=…, which it "
            "would fill a second time when it is computed again; call the model without a cache "
            "and without use_cache=True, or train without activation checkpointing"
        )
    at_entry = _copied((inputs, named_inputs))

    def forward(*inputs: Any, **named_inputs: Any) -> Any:
        if context.is_recomputing:
            inputs, named_inputs = _copied(at_entry)
        return call(*inputs, **named_inputs)

    return checkpoint(
        forward, *inputs, use_reentrant=False, context_fn=context.recomputation, **named_inputs
    )


def _copied(value: Any) -> Any:
    """The same tensors in containers of their own: dense blocks add to a list that they share."""
    if type(value) in (list, tuple):
        return type(value)(_copied(inner) for inner in value)
    if type(value) is dict:
        return {key: _copied(inner) for key, inner in value.items()}
    return value
