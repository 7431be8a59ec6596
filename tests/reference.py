"""Equation (6) written out with plain autograd in one process: what the engine is compared with.

Nothing here is shared with the engine: own gradients, perturbation, restoring, batch normalization
and masks; clipping and optimizers are torch's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.reference_layers import Place, replace_layers, seed_of_forward

Loss = Callable[[nn.Module, Any], tuple[torch.Tensor, float]]
"""Of a model and some samples: the mean over them, and what it counts for."""


@dataclass(frozen=True)
class Reference:
    """The trajectory of `reference_run`.

    Attributes:
        start: parameters and buffers before the first step.
        state: after the last one.
        losses: mean loss of the mini-batch at w, by step.
        gradient_norms: norm of the averaged gradient before clipping, by step.
        ascent_norms: mean over the micro-batches of the ascent gradient's norm, by step.
    """

    start: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    ascent_norms: list[float] = field(default_factory=list)


def _cross_entropy(model: nn.Module, batch: Any) -> tuple[torch.Tensor, float]:
    images, labels = batch
    return F.cross_entropy(model(images), labels), len(labels)


def reference_run(
    model: nn.Module,
    *,
    mini_batch: Callable[[int], Any],
    steps: int,
    micro_batches: int,
    rho: float | Sequence[float] | None,
    build_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    clip_norm: float | None = None,
    norm_samples: int | None = None,
    seed: int = 0,
    normalizes: bool = True,
    algorithms: Sequence[str] | None = None,
    loss: Loss = _cross_entropy,
    chunk: int | None = None,
) -> Reference:
    """Trains in the model's own type, one micro-batch at a time.

    Args:
        model: trained in place; its batch norms and dropouts are replaced.
        mini_batch: images and labels of a step, or what else `loss` takes: tensors of all samples
            in a tuple or a dict.
        steps: optimizer steps.
        micro_batches: m.
        rho: radius of the perturbation, or one for each micro-batch; None: no ascent, plain
            training.
        build_optimizer: makes the optimizer of the trainable parameters.
        clip_norm: largest norm of the averaged gradient.
        norm_samples: samples that batch norms normalise together; None: a micro-batch.
        seed: of the dropout masks.
        normalizes: whether the perturbation has the length ρ, or is ρ times the gradient.
        algorithms: of each step, `vanilla` or `sam` (of one micro-batch) or `msam`; by default the
            one that `rho` means.
        loss: cross-entropy by default.
        chunk: samples of one forward; by default a micro-batch. It matters where a forward draws
            from the global generators, which are seeded by its first sample.
    """
    place = Place(seed=seed, norm_samples=norm_samples)
    replace_layers(model, place)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(parameters)
    result = Reference(start=_copied(model))

    def loss_and_gradients(
        batch: Any, part: torch.Tensor, *, records: bool
    ) -> tuple[float, list[torch.Tensor], float]:
        """Mean loss of a micro-batch, its gradients, and its weight."""
        # The engine gives unused parameters a zero gradient, so they decay and keep their momentum.
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        total, whole_weight = 0.0, 0.0
        for positions in part.split(chunk or len(part)):
            place.begin_forward(positions, records_statistics=records)
            _seed_generators(seed_of_forward(place, int(positions[0])))
            mean, weight = loss(model, _rows(batch, positions))
            gradients = torch.autograd.grad(mean, parameters, allow_unused=True)
            for sum_, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    sum_.add_(gradient, alpha=weight)
            total, whole_weight = total + mean.item() * weight, whole_weight + weight
        return total / whole_weight, [sum_ / whole_weight for sum_ in sums], whole_weight

    for step in range(steps):
        batch = mini_batch(step)
        num_samples = _num_samples(batch)
        place.begin_step(step, num_samples=num_samples)
        total = [torch.zeros_like(parameter) for parameter in parameters]
        losses, norms, weights = [], [], []
        algorithm = algorithms[step] if algorithms else "vanilla" if rho is None else "msam"
        num_parts = 1 if algorithm == "sam" else micro_batches
        parts = torch.arange(num_samples).tensor_split(num_parts)
        for number, part in enumerate(parts):
            value, gradients, weight = loss_and_gradients(batch, part, records=True)
            losses.append(value * weight)
            weights.append(weight)
            if algorithm != "vanilla":
                assert rho is not None
                norm = torch.cat([g.flatten() for g in gradients]).norm().item()
                norms.append(norm)
                before = [parameter.detach().clone() for parameter in parameters]
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        length = norm if normalizes else 1.0
                        radius = rho[number] if isinstance(rho, Sequence) else rho
                        parameter.add_(gradient, alpha=radius / length if length else 0.0)
                _, gradients, _ = loss_and_gradients(batch, part, records=False)
                with torch.no_grad():
                    for parameter, old in zip(parameters, before, strict=True):
                        parameter.copy_(old)
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_.add_(gradient * weight)
        total = [sum_ / sum(weights) for sum_ in total]
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        result.gradient_norms.append(float(torch.nn.utils.get_total_norm(total)))
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        place.end_step()
        result.losses.append(sum(losses) / sum(weights))
        result.ascent_norms.append(sum(norms) / num_parts)
    result.state.update(_copied(model))
    return result


def _rows(batch: Any, positions: torch.Tensor) -> Any:
    if isinstance(batch, dict):
        return {
            name: value[positions] if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
    return tuple(tensor[positions] for tensor in batch)


def _num_samples(batch: Any) -> int:
    return len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])


def _seed_generators(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
