"""ZeRO-3's state, out of the flat shards of a group and back into them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from msam_scale.ranks import Ranks
from msam_scale.sharding.pieces import MODEL, Piece, saved_by
from msam_scale.sharding.saved import SavedTensors
from msam_scale.sharding.state import (
    STATE_NUMBERS,
    STATE_SEPARATOR,
    model_state,
    state_keys,
    state_name,
)
from msam_scale.sharding.zero import private_api


class ShardState:
    """Where each parameter's shard lies in DeepSpeed's flat tensors.

    Args:
        engine: DeepSpeed's.
        model: its parameters are sharded.
        group: the ranks that share them.
        device: where their backend sends from.
        frozen: full-precision shards of the parameters that are not trained, among others.
    """

    def __init__(
        self,
        engine: Any,
        model: nn.Module,
        *,
        group: dist.ProcessGroup,
        device: torch.device,
        frozen: Mapping[nn.Parameter, torch.Tensor],
    ) -> None:
        self._model, self._group, self._device = model, group, device
        self._places: dict[nn.Parameter, tuple[torch.Tensor, int, int]] = {}
        self._keys: dict[nn.Parameter, torch.Tensor] = {}  # of the optimizer's state
        for key, flat, parameters in zip(
            private_api.stepped_tensors(engine),
            private_api.master_shards(engine),
            private_api.sub_groups(engine),
            strict=True,
        ):
            start = 0
            for parameter in parameters:
                length = private_api.shard_numel(parameter)
                self._places[parameter], self._keys[parameter] = (flat, start, length), key
                start += length
        self._frozen = {p: shard for p, shard in frozen.items() if p not in self._places}

    def set_masters(self, shards: Mapping[nn.Parameter, torch.Tensor]) -> None:
        """Writes float32 shards into the masters."""
        with torch.no_grad():
            for parameter, (flat, start, length) in self._places.items():
                flat[start : start + length].copy_(shards[parameter])

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters in full precision and buffers under their own names, as CPU tensors."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        whole: dict[str, torch.Tensor] = {}
        for name, value in self._model.state_dict().items():
            parameter = parameters.get(name)
            tensor = value if parameter is None else self._whole(parameter, self._shard(parameter))
            whole[name] = tensor.detach().to("cpu", copy=True)
        return whole

    def model_pieces(self, *, ranks: Ranks) -> list[Piece]:
        """What this rank saves of parameters, in full precision, and buffers."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        whole: list[Piece] = []
        sharded: list[Piece] = []
        for name, value in model_state(self._model):
            if (parameter := parameters.get(name.removeprefix(MODEL))) is None:
                whole.append(Piece.whole(name, value))
            else:
                sharded.append(self._piece(name, parameter, self._shard(parameter)))
        return self._saved_by(ranks, whole=whole, sharded=sharded)

    def optimizer_pieces(self, optimizer: torch.optim.Optimizer, *, ranks: Ranks) -> list[Piece]:
        """What this rank saves of the optimizer's state."""
        whole: list[Piece] = []
        sharded: list[Piece] = []
        for name, parameter in self._trained():
            flat, start, length = self._places[parameter]
            for key, value in optimizer.state.get(self._keys[parameter], {}).items():
                if value is None:
                    continue
                entry, tensor = state_name(name, key), torch.as_tensor(value)
                if tensor.numel() == flat.numel() and key not in STATE_NUMBERS:
                    shard = tensor.flatten()[start : start + length]
                    sharded.append(self._piece(entry, parameter, shard))
                else:
                    whole.append(Piece.whole(entry, tensor))
        return self._saved_by(ranks, whole=whole, sharded=sharded)

    def load(
        self,
        optimizer: torch.optim.Optimizer,
        weights: SavedTensors,
        optimizer_state: SavedTensors | None,
    ) -> None:
        """Takes this rank's shards of saved tensors into masters, buffers and optimizer."""
        keys = state_keys(optimizer_state or {}, names=[name for name, _ in self._trained()])
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                if (parameter := parameters.get(name)) is None:
                    value.copy_(weights[name])
                    continue
                self._shard(parameter).copy_(self._part(parameter, weights, name))
                if parameter in self._frozen:
                    private_api.set_own_shard(parameter, self._frozen[parameter])
            if optimizer_state is None:
                return
            optimizer.state.clear()
            for name, parameter in self._trained():
                flat, start, length = self._places[parameter]
                for key in keys.get(name, ()):
                    entry = f"{name}{STATE_SEPARATOR}{key}"
                    state = optimizer.state[self._keys[parameter]]
                    is_whole = optimizer_state.shape(entry) != private_api.whole_shape(parameter)
                    if key in STATE_NUMBERS or is_whole:
                        state[key] = private_api.number_for(optimizer, optimizer_state[entry])
                        continue
                    if not isinstance(state.get(key), torch.Tensor):
                        state[key] = torch.zeros_like(flat)
                    part = self._part(parameter, optimizer_state, entry)
                    state[key].view(-1)[start : start + length].copy_(part)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._model.named_parameters():
            if parameter in self._places:
                yield name, parameter

    def _shard(self, parameter: nn.Parameter) -> torch.Tensor:
        if parameter in self._frozen:
            return self._frozen[parameter]
        flat, start, length = self._places[parameter]
        return flat[start : start + length]

    def _whole(self, parameter: nn.Parameter, shard: torch.Tensor) -> torch.Tensor:
        shape = private_api.whole_shape(parameter)
        shard = shard.detach().to(self._device).contiguous()
        shards = [torch.empty_like(shard) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(shards, shard, group=self._group)
        return torch.cat(shards)[: shape.numel()].view(shape)

    def _own_range(self, parameter: nn.Parameter) -> tuple[int, int]:
        """First and last + 1 element of this rank's shard, without padding."""
        length, total = private_api.shard_numel(parameter), private_api.whole_shape(parameter)
        start = min(dist.get_rank(self._group) * length, total.numel())
        return start, min(start + length, total.numel())

    def _piece(self, name: str, parameter: nn.Parameter, shard: torch.Tensor) -> Piece:
        start, stop = self._own_range(parameter)
        shape = tuple(private_api.whole_shape(parameter))
        return Piece(name, shape, start, shard.detach()[: stop - start])

    def _saved_by(self, ranks: Ranks, *, whole: list[Piece], sharded: list[Piece]) -> list[Piece]:
        size = dist.get_world_size(self._group)
        return saved_by(ranks, whole=whole, sharded=sharded, shard_group_size=size)

    def _part(self, parameter: nn.Parameter, saved: SavedTensors, name: str) -> torch.Tensor:
        shard = saved.elements(name, *self._own_range(parameter))
        padded = shard.new_zeros(private_api.shard_numel(parameter))
        padded[: shard.numel()] = shard
        return padded
