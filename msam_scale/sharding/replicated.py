"""Every rank holds all parameters: no wrapper around the model, one reduction a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from data_pipelines.errors import UserError
from msam_scale.optimization import step_unless
from msam_scale.sharding.flat_buffer import FlatBuffer
from msam_scale.sharding.gradient_reduction import BUCKET_BYTES, GradientReduction
from msam_scale.sharding.interface import ShardingRequest
from msam_scale.sharding.norms import square_sum


class ReplicatedSharding:
    """Two gradient-sized buffers, the accumulator and the ascent gradient, and pointer swaps.

    A backward adds in place to whatever tensor `parameter.grad` is, so ascent and descent differ
    only in whose views are installed there. The ascent buffer becomes g, then ε, then w + ε, and
    the parameters point into it during the descent; w itself is never written, so restoring it is
    exact and moves no byte.

    Raises:
        UserError: the model has no trainable parameter.
    """

    def __init__(self, request: ShardingRequest, *, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._model = request.model
        # Tied weights are one parameter and appear once.
        self._all_parameters = list(request.model.parameters())
        self._trained = [p.requires_grad for p in self._all_parameters]
        self._parameters = [p for p in self._all_parameters if p.requires_grad]
        if not self._parameters:
            raise UserError("the model has no trainable parameter: every requires_grad is False")
        self._world = request.ranks.world
        self._perturbation_group = request.ranks.group_of(request.perturbation_group_size)
        self._make_dense()
        self._copy_from_first_rank()
        self.optimizer = request.build_optimizer(self._parameters)
        self._accumulator = FlatBuffer(self._parameters)
        if request.ascends:
            self.ascent_gradient = FlatBuffer(self._parameters)
        self._reduction = GradientReduction(
            self._parameters, layout=self._accumulator, bucket_bytes=bucket_bytes
        )
        self._pass: tuple[FlatBuffer, dist.ProcessGroup | None] | None = None

    def weights(self) -> list[torch.Tensor]:
        """The parameters' storages, as they are now."""
        return [parameter.data for parameter in self._parameters]

    def begin_step(self) -> None:
        """Clears the accumulator.

        Raises:
            UserError: a parameter was frozen or unfrozen since the engine was made.
        """
        if [p.requires_grad for p in self._all_parameters] != self._trained:
            raise UserError("parameters were frozen or unfrozen since initialize; call it again")
        self._accumulator.flat.zero_()

    @contextmanager
    def ascent_pass(self) -> Iterator[None]:
        """Gradients go to the ascent buffer; leaving, they are summed over its group."""
        self.ascent_gradient.flat.zero_()
        with self._gradients_in(self.ascent_gradient, self._perturbation_group):
            yield

    @contextmanager
    def descent_pass(self, *, last: bool) -> Iterator[None]:
        """Gradients go to the accumulator; leaving the last, they are summed over the world."""
        with self._gradients_in(self._accumulator, self._world if last else None):
            yield

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Back-propagates; in the last backward of a pass buckets leave as they fill."""
        assert self._pass is not None, "backward() belongs inside a pass"
        buffer, group = self._pass
        if last and group is not None:
            self._reduction.start(buffer, group)
        loss.backward()

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Points the parameters at w + ε and, whatever happens, back at w."""
        weights = self.weights()
        views = self.ascent_gradient.views
        torch._foreach_add_(views, weights)
        try:
            self._point_at(views)
            yield
        finally:
            self._point_at(weights)

    def square_sum(self, flat: torch.Tensor) -> torch.Tensor:
        """Sum of squares; every rank holds all of it, so nothing is communicated."""
        return square_sum(flat)

    def gradient_norm(self) -> torch.Tensor:
        """‖·‖₂ of the reduced gradient."""
        return square_sum(self._accumulator.flat).sqrt()

    def clip(self, max_norm: float, *, norm: torch.Tensor) -> None:
        """Scales the reduced gradient, with torch's 1e-6 in the denominator."""
        self._accumulator.flat.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))

    def apply(self, skip: torch.Tensor) -> None:
        """Steps the optimizer on the reduced gradient, which every rank holds."""
        step_unless(self.optimizer, skip)

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """The model's own state dict, copied to the CPU."""
        state = self._model.state_dict()
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise UserError(
                    f"{name}: the model's extra state is a {type(value).__name__}; "
                    "only tensors can be saved"
                )
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    def _make_dense(self) -> None:
        # Gradients are dense, and a fused optimizer walks through both memories in step.
        for parameter in self._parameters:
            if torch.empty_like(parameter, device="meta").stride() != parameter.stride():
                parameter.data = parameter.data.contiguous()

    def _copy_from_first_rank(self) -> None:
        if self._world is None:
            return
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            # Backends read memory in order and know few types: they get contiguous bytes.
            whole = tensor.detach().contiguous()
            dist.broadcast(_bytes(whole), src=0, group=self._world)
            if not torch.equal(_bytes(whole), _bytes(tensor)):
                tensor.detach().copy_(whole)

    @contextmanager
    def _gradients_in(self, buffer: FlatBuffer, group: dist.ProcessGroup | None) -> Iterator[None]:
        self._install_gradients(buffer)
        self._pass = buffer, group
        try:
            yield
            self._check_gradients(buffer)
            if group is not None:
                self._reduction.finish()
        finally:
            self._reduction.cancel()
            self._pass = None

    def _install_gradients(self, buffer: FlatBuffer) -> None:
        for parameter, view in zip(self._parameters, buffer.views, strict=True):
            parameter.grad = view

    def _check_gradients(self, buffer: FlatBuffer) -> None:
        for parameter, view in zip(self._parameters, buffer.views, strict=True):
            if parameter.grad is not view:
                raise UserError(
                    "a parameter's .grad was replaced during a pass, so its gradient is lost: "
                    "loss_fn must not call zero_grad() or assign .grad"
                )

    def _point_at(self, tensors: Sequence[torch.Tensor]) -> None:
        for parameter, tensor in zip(self._parameters, tensors, strict=True):
            parameter.data = tensor
        # Inside a caller's own autocast the narrow copies of the old weights would live on.
        torch.clear_autocast_cache()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)
