"""Exact Hessians of the loss of every example, for models small enough to hold them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call, jacrev, vmap
from torch.utils._pytree import tree_map

from msam_scale.batch_tree import Batch, num_samples
from msam_scale.losses import LossFunction, LossTerm


def example_hessians(
    loss: Callable[[torch.Tensor, Batch], torch.Tensor],
    *,
    weights: torch.Tensor,
    batch: Batch,
    largest_num_bytes: int = 2**31,
    examples_at_once: int = 8,
) -> torch.Tensor:
    """H_i, the Hessian of every example's loss, (n, p, p) in float64.

    Args:
        loss: `loss(weights, batch)`, the mean loss of a batch, twice differentiable in `weights`.
        weights: where, (p,); taken to float64.
        batch: n examples, as tensors or a dict, list or tuple of tensors; real numbers are taken to
            float64.
        largest_num_bytes: refuse results larger than this.
        examples_at_once: examples differentiated together; more is faster and takes more memory.

    Raises:
        ValueError: the result would be larger than `largest_num_bytes`.
        RuntimeError: from torch, for an operation without a second derivative.
    """
    size = weights.numel()
    num_bytes = 8 * num_samples(batch) * size**2
    if num_bytes > largest_num_bytes:
        raise ValueError(
            f"{num_samples(batch)} Hessians of {size} parameters take {num_bytes:.2g} bytes; "
            f"largest_num_bytes allows {largest_num_bytes:.2g}. Take fewer examples or a smaller "
            "model"
        )

    def loss_of_one(weights: torch.Tensor, example: Batch) -> torch.Tensor:
        return loss(weights, tree_map(lambda tensor: tensor.unsqueeze(0), example))

    # Reverse over reverse: more operations have it than forward over reverse.
    second = jacrev(jacrev(loss_of_one))
    per_example = vmap(second, in_dims=(None, 0), chunk_size=examples_at_once)
    result: torch.Tensor = per_example(_double(weights.detach()), tree_map(_double, batch))
    return (result + result.mT) / 2


def model_hessians(model: torch.nn.Module, *, batch: Batch, loss_fn: LossFunction) -> torch.Tensor:
    """H_i of a model's trainable parameters, (n, p, p) in float64, at its present weights.

    The model is copied to float64 and evaluation mode: batch normalization uses its running
    statistics, as a constant, and dropout is off. Parameters come in the order of
    `named_parameters`, each flattened.

    Args:
        model: at most some hundred parameters; not changed.
        batch: n examples, as `loss_fn` takes them.
        loss_fn: `loss_fn(model, batch)`, the loss of a batch.

    Raises:
        ValueError: no parameter requires a gradient, or see `example_hessians`.
    """
    double = copy.deepcopy(model).to(torch.float64).eval()
    trained = {name: p.detach() for name, p in double.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model requires a gradient; there is no Hessian")
    lengths = [parameter.numel() for parameter in trained.values()]

    def loss(weights: torch.Tensor, batch: Batch) -> torch.Tensor:
        pieces = zip(trained.items(), weights.split(lengths), strict=True)
        values = {name: piece.view(old.shape) for (name, old), piece in pieces}

        def call(*positional: Any, **named: Any) -> Any:
            return functional_call(double, values, positional, named)

        return LossTerm.of(loss_fn(call, batch), num_samples=1).mean

    weights = torch.cat([parameter.reshape(-1) for parameter in trained.values()])
    return example_hessians(loss, weights=weights, batch=batch)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor
