"""Every rank holds all parameters: no wrapper around the model, one reduction a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from msam_scale.sharding.buffered import BufferedSharding
from msam_scale.sharding.gradient_reduction import BUCKET_BYTES
from msam_scale.sharding.interface import ShardingRequest
from msam_scale.sharding.placement import place


class ReplicatedSharding(BufferedSharding):
    """Whole parameters, and perturbation by pointer swap.

    The ascent buffer becomes g, then ε, then w + ε, and the parameters point into it during the
    descent; w itself is never written, so restoring it is exact and moves no byte.

    Raises:
        UserError: the model has no trainable parameter.
    """

    def __init__(self, request: ShardingRequest, *, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._lay_out(request)
        super().__init__(request, shard_group_size=1, bucket_bytes=bucket_bytes)

    def _lay_out(self, request: ShardingRequest) -> None:
        """Puts the model in place before anything is made of its parameters."""
        place(request.model, request=request)

    def weights(self) -> list[torch.Tensor]:
        """The parameters' storages, as they are now."""
        return [parameter.data for parameter in self._parameters]

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

    def _point_at(self, tensors: Sequence[torch.Tensor]) -> None:
        for parameter, tensor in zip(self._parameters, tensors, strict=True):
            parameter.data = tensor
        # Inside a caller's own autocast the narrow copies of the old weights would live on.
        torch.clear_autocast_cache()
