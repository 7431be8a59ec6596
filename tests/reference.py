"""Equation (6) written out with plain autograd in one process: what the engine is compared with.

Nothing here is shared with the engine: own gradients, perturbation, restoring, batch normalization
and masks; clipping and optimizers are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from reference_layers import Place, replace_layers
from torch import nn


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


def reference_run(
    model: nn.Module,
    *,
    mini_batch: Callable[[int], tuple[torch.Tensor, ...]],
    steps: int,
    micro_batches: int,
    rho: float | Sequence[float] | None,
    build_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    clip_norm: float | None = None,
    norm_samples: int | None = None,
    seed: int = 0,
    normalizes: bool = True,
    algorithms: Sequence[str] | None = None,
) -> Reference:
    """Trains in the model's own type, one micro-batch at a time.

    Args:
        model: trained in place; its batch norms and dropouts are replaced.
        mini_batch: images and labels of a step.
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
    """
    place = Place(seed=seed, norm_samples=norm_samples)
    replace_layers(model, place)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(parameters)
    result = Reference(start=_copied(model))

    def loss_and_gradients(
        batch: tuple[torch.Tensor, ...], part: torch.Tensor, *, records: bool
    ) -> tuple[float, list[torch.Tensor]]:
        place.begin_forward(part, records_statistics=records)
        loss = F.cross_entropy(model(batch[0][part]), batch[1][part])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        # The engine gives unused parameters a zero gradient, so they decay and keep their momentum.
        filled = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        return loss.item(), filled

    for step in range(steps):
        batch = mini_batch(step)
        place.begin_step(step, num_samples=len(batch[0]))
        total = [torch.zeros_like(parameter) for parameter in parameters]
        losses, norms = [], []
        algorithm = algorithms[step] if algorithms else "vanilla" if rho is None else "msam"
        num_parts = 1 if algorithm == "sam" else micro_batches
        parts = torch.arange(len(batch[0])).tensor_split(num_parts)
        for number, part in enumerate(parts):
            loss, gradients = loss_and_gradients(batch, part, records=True)
            losses.append(loss)
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
                _, gradients = loss_and_gradients(batch, part, records=False)
                with torch.no_grad():
                    for parameter, old in zip(parameters, before, strict=True):
                        parameter.copy_(old)
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_.add_(gradient / num_parts)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        result.gradient_norms.append(float(torch.nn.utils.get_total_norm(total)))
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        place.end_step()
        result.losses.append(sum(losses) / num_parts)
        result.ascent_norms.append(sum(norms) / num_parts)
    result.state.update(_copied(model))
    return result


def _copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
