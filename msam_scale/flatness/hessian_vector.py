"""Exact Hessian-vector products of the mean loss over a data set, for weights held whole.

What is differentiated is the loss of the trained model as it predicts: dropout and stochastic depth
are off, and batch normalization uses its running statistics, which are constants. It then is the
mean of the samples' own losses, and depends neither on batches nor on ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from msam_scale.batch_tree import Batch, num_samples, to_device
from msam_scale.layers.modes import evaluating
from msam_scale.losses import LossFunction, LossTerm


class ExactCurvature:
    """The loss over a data set around the present weights: value, gradient, Hessian products.

    Products are exact up to rounding in the parameters' own type, by differentiating ⟨∇L, v⟩ once
    more (Pearlmutter, 1994). Batches are gone through in order, one after the other, so one batch
    and its graph of both backwards are in memory at a time. Where ReLUs have kinks, the second
    derivative is that of the linear pieces.

    Vectors are all trained parameters in the order of `model.parameters()`, flattened.

    Args:
        model: with all its parameters on this rank. It is in evaluation mode while it is used, and
            back in the mode it was in afterwards.
        loss_fn: the loss of the samples given, computed in the parameters' type.
        batches: this rank's part of the data set, gone through once for each product, so no
            iterator. Any number of batches, of any sizes, none twice.
        world: the ranks that hold the same weights and share the samples; None for one process.

    Raises:
        ValueError: nothing is trained, parameters are sharded or differ in type, or `batches` is an
            iterator.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss_fn: LossFunction,
        batches: Iterable[Batch],
        world: dist.ProcessGroup | None = None,
    ) -> None:
        check_batches(batches)
        self._model, self._loss_fn, self._batches, self._world = model, loss_fn, batches, world
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError("the model has no trainable parameter: every requires_grad is False")
        if any(type(parameter.data) is not torch.Tensor for parameter in self._parameters):
            raise ValueError(
                "the parameters are sharded, and exact products need them whole; "
                "`DifferenceCurvature` works"
            )
        first = self._parameters[0]
        if any(parameter.dtype != first.dtype for parameter in self._parameters):
            raise ValueError("the trained parameters differ in type; a model in one type works")
        self._device, self._dtype = first.device, first.dtype
        self._sizes = [parameter.numel() for parameter in self._parameters]

    def loss(self) -> float:
        """The mean loss over all samples of all ranks."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        count = 0.0
        with evaluating(self._model), torch.no_grad():
            for loss, size in self._losses():
                total += loss.double() * size
                count += size
        return float(self._mean(total, count))

    def gradient(self) -> torch.Tensor:
        """The gradient of `loss`, of shape (number of trained parameters,)."""
        total, count = self._zeros(), 0.0
        with evaluating(self._model):
            for loss, size in self._losses():
                gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
                total.add_(_flat(gradients), alpha=size)
                count += size
        return self._mean(total, count)

    def product(self, vector: torch.Tensor) -> torch.Tensor:
        """The Hessian of `loss` times a vector of shape (number of trained parameters,)."""
        parts = [
            part.view_as(parameter)
            for part, parameter in zip(vector.split(self._sizes), self._parameters, strict=True)
        ]
        total, count = self._zeros(), 0.0
        # Fused attention kernels have no second derivative.
        with evaluating(self._model), sdpa_kernel(SDPBackend.MATH):
            for loss, size in self._losses():
                self._add_product(total, loss=loss, parts=parts, weight=size)
                count += size
        return self._mean(total, count)

    @contextmanager
    def displaced(self, displacement: torch.Tensor) -> Iterator[None]:
        """Inside, the weights are w + displacement; outside w again, bit for bit."""
        weights = [parameter.data for parameter in self._parameters]
        parts = displacement.split(self._sizes)
        try:
            for parameter, weight, part in zip(self._parameters, weights, parts, strict=True):
                parameter.data = weight + part.view_as(weight)
            yield
        finally:
            for parameter, weight in zip(self._parameters, weights, strict=True):
                parameter.data = weight

    def inner(self, rows: Sequence[torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
        """⟨row, vector⟩ for each row; nothing is communicated, all ranks hold all of it."""
        return inner_products(rows, vector).cpu()

    def random_signs(self, seed: int) -> torch.Tensor:
        """A vector of independent entries ±1, the same on every rank and device."""
        return random_signs(sum(self._sizes), seed=seed).to(self._device, self._dtype)

    def _losses(self) -> Iterator[tuple[torch.Tensor, float]]:
        """The mean loss of each batch, and what it counts for."""
        for batch in self._batches:
            batch = to_device(batch, self._device, widen_to=self._dtype)
            returned = self._loss_fn(self._model, batch)
            term = LossTerm.of(returned, num_samples=num_samples(batch))
            if weight := float(term.total_weight):
                yield term.mean, weight

    def _add_product(
        self,
        total: torch.Tensor,
        *,
        loss: torch.Tensor,
        parts: Sequence[torch.Tensor],
        weight: float,
    ) -> None:
        gradients = torch.autograd.grad(
            loss, self._parameters, create_graph=True, materialize_grads=True
        )
        # Where the loss is linear in a parameter its gradient is a constant, without a graph.
        curved = [
            (gradient, part)
            for gradient, part in zip(gradients, parts, strict=True)
            if gradient.requires_grad
        ]
        if not curved:
            return
        second = torch.autograd.grad(
            [gradient for gradient, _ in curved],
            self._parameters,
            grad_outputs=[part for _, part in curved],
            materialize_grads=True,
        )
        total.add_(_flat(second), alpha=weight)

    def _mean(self, total: torch.Tensor, count: float) -> torch.Tensor:
        counts = torch.tensor(count, dtype=torch.float64, device=self._device)
        if self._world is not None:
            dist.all_reduce(total, group=self._world)
            dist.all_reduce(counts, group=self._world)
        if not counts:
            raise ValueError("there is no sample to compute a loss of")
        return total.div_(counts.to(total.dtype))

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(sum(self._sizes), dtype=self._dtype, device=self._device)


def check_batches(batches: Any) -> None:
    """Refuses an iterator, which could be gone through once only.

    Raises:
        ValueError: it is one.
    """
    if isinstance(batches, Iterator):
        raise ValueError("batches is an iterator; a list or a loader can be gone through again")


def inner_products(rows: Sequence[torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
    """⟨row, vector⟩ for each row, multiplied and summed in float64, on the vectors' device."""
    wide = vector.double()
    return torch.stack([torch.dot(row.double(), wide) for row in rows])


def random_signs(size: int, *, seed: int) -> torch.Tensor:
    """A vector of `size` independent entries ±1 on the CPU, a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (size,), generator=generator, dtype=torch.int8) * 2 - 1


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
