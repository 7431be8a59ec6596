"""Attention of transformers whose dropout masks depend on the sample, never on the layout.

Registered through transformers' public AttentionInterface (its documentation: "Attention
Interface"). Fused attention draws its dropout mask inside the kernel, for the whole batch at once;
here the attention module's own `Dropout` layer draws it, and the engine keys that by sample. So it
takes the memory of the attention weights, samples x heads x tokens². Where nothing is dropped, it
is the fused attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError

KEYED_ATTENTION = "msam_scale_keyed"
# What some models hand to their attention and would come out wrong without.
_UNKNOWN = ("softcap", "s_aux", "position_bias", "head_mask", "sinks")


def register_keyed_attention() -> None:
    """Makes `attn_implementation: msam_scale_keyed` known to transformers; again does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface  # takes seconds
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(KEYED_ATTENTION, keyed_attention)
    AttentionMaskInterface.register(KEYED_ATTENTION, eager_mask)


def keyed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled dot-product attention, as transformers calls it.

    Args:
        module: the attention module; a `Dropout` layer among its children drops.
        query: (samples, heads, tokens, size of a head).
        key: (samples, heads or a divisor of them, tokens, size of a head).
        value: as `key`.
        attention_mask: what to add to the attention scores before softmax; None: nothing.
        scaling: of the scores; by default 1 / sqrt(size of a head).
        dropout: probability to drop an attention weight.
        **others: what only some models hand over.

    Returns:
        (samples, tokens, heads, size of a head), and the attention weights where they exist.

    Raises:
        UserError: the model's attention has something that this one does not know.
    """
    unknown = [name for name in _UNKNOWN if others.get(name) is not None]
    if unknown:
        raise UserError(
            f"model.args: {KEYED_ATTENTION}, which is the default, does not know the model's "
            f"{', '.join(unknown)}; attn_implementation: eager works, with dropout masks that "
            "depend on the layout"
        )
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    if attention_mask is not None:
        attention_mask = attention_mask[:, :, :, : key.shape[-2]]
    if not dropout:
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling
        )
        return output.transpose(1, 2).contiguous(), None
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    # As transformers' own: softmax in float32 where scores are narrower.
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = weights.to(query.dtype)
    layer = _dropout_layer(module, dropout)
    if layer is None:
        # Keyed by slice, of which the engine speaks.
        weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    else:
        weights = layer(weights)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _dropout_layer(module: nn.Module, probability: float) -> nn.Module | None:
    """The child of an attention module that drops attention weights, by its probability."""
    layers = (child for child in module.children() if isinstance(child, nn.Dropout))
    return next((layer for layer in layers if layer.p == probability), None)
