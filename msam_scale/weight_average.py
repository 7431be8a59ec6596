"""An exponential moving average of the weights, laid out on ranks as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from data_pipelines.errors import UserError
from msam_scale.sharding import Sharding


class WeightAverage:
    """The average of this rank's shards of w and of the model's floating-point buffers.

    After every step it moves by a part 1 - decay of the way to the weights, as timm's ModelEmaV3
    does without a warm-up. It starts as a copy of them. What is not trained and what is no
    floating-point number, such as a count of batches, has no average: it is the model's.

    Args:
        sharding: of the model, laid out; the average takes as much memory as its shards.
        decay: of one step, between 0 and 1.
    """

    def __init__(self, sharding: Sharding, *, decay: float) -> None:
        self.decay = decay
        self._sharding = sharding
        self._buffer_names = [
            name
            for name, buffer in sharding.model.named_buffers()
            # A mask of infinities is constant, and the way from -inf to -inf is not a number.
            if buffer.is_floating_point() and bool(buffer.isfinite().all())
        ]
        self._averages = [tensor.clone() for tensor in self._averaged()]
        self._is_in_the_model = False

    @torch.no_grad()
    def update(self, skip: torch.Tensor) -> None:
        """Follows one optimizer step.

        Args:
            skip: a bool scalar on the device; true leaves the average as it is. It is not read on
                the host, unless weights are kept there.
        """
        rate = (~skip).double() * (1.0 - self.decay)
        kinds = {(tensor.dtype, tensor.device) for tensor in self._averages}
        rates = {(dtype, device): rate.to(device, dtype) for dtype, device in kinds}
        # The weights of a skipped step are finite, so that a rate of zero leaves every bit.
        torch._foreach_lerp_(
            self._averages,
            self._averaged(),
            [rates[tensor.dtype, tensor.device] for tensor in self._averages],
        )

    @torch.no_grad()
    def copy_from_weights(self) -> None:
        """Starts anew from the weights and buffers as they are now.

        Raises:
            UserError: the model has the average at the moment.
        """
        self.check_outside("copying the weights into the average")
        torch._foreach_copy_(self._averages, self._averaged())

    @contextmanager
    def in_the_model(self) -> Iterator[None]:
        """Inside, the model has the average; outside, whatever happens, w again, bit for bit.

        Collective. Tensors change places one by one, so that the only extra memory is that of the
        largest.

        Raises:
            UserError: the model has the average already.
        """
        self.check_outside("engine.averaged_weights()")
        pairs = list(zip(self._averaged(), self._averages, strict=True))
        # Made once: nothing on the way back can lack memory.
        spare = _spare_memory(self._averages)
        exchanged = 0
        self._is_in_the_model = True
        try:
            for one, other in pairs:
                _exchange(one, other, spare=spare)
                exchanged += 1
            self._written()
            yield
        finally:
            for one, other in pairs[:exchanged]:
                _exchange(one, other, spare=spare)
            self._written()
            self._is_in_the_model = False

    def check_outside(self, action: str) -> None:
        """Refuses an action while the model has the average.

        Raises:
            UserError: inside `in_the_model`.
        """
        if self._is_in_the_model:
            raise UserError(
                f"{action} does not work inside engine.averaged_weights(), where the model has the "
                "averaged weights; leave that block first"
            )

    def _averaged(self) -> list[torch.Tensor]:
        """What there is an average of, as it is now."""
        buffers = [self._sharding.model.get_buffer(name) for name in self._buffer_names]
        return [*self._sharding.weights(), *buffers]

    def _written(self) -> None:
        self._sharding.weights_written()
        # Inside a caller's own autocast the narrow copies of the weights before would live on.
        torch.clear_autocast_cache()


def _spare_memory(tensors: Sequence[torch.Tensor]) -> dict[torch.device, torch.Tensor]:
    """As many bytes on each device as its largest tensor has."""
    sizes: dict[torch.device, int] = {}
    for tensor in tensors:
        sizes[tensor.device] = max(tensor.nbytes, sizes.get(tensor.device, 0))
    return {
        device: torch.empty(size, dtype=torch.uint8, device=device)
        for device, size in sizes.items()
    }


@torch.no_grad()
def _exchange(
    one: torch.Tensor, other: torch.Tensor, *, spare: dict[torch.device, torch.Tensor]
) -> None:
    kept = spare[one.device][: one.nbytes].view(one.dtype).view(one.shape)
    kept.copy_(one)
    one.copy_(other)
    other.copy_(kept)
