"""The optimizer's state under ZeRO-1 and ZeRO-2, whole and back into a rank's pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from msam_scale.sharding.state import STATE_NUMBERS, STATE_SEPARATOR, state_keys
from msam_scale.sharding.zero import private_api


class GroupState:
    """Where each parameter lies in its group's flat weights, of which ranks step equal pieces.

    Args:
        engine: DeepSpeed's.
        model: its trained parameters are views of the flat weights.
        device: where the ranks' backend sends from.
    """

    def __init__(self, engine: Any, model: nn.Module, *, device: torch.device) -> None:
        self._engine, self._model, self._device = engine, model, device
        self._stepped = private_api.stepped_tensors(engine)
        self._groups = private_api.grouped_parameters(engine)
        self._starts = [
            {p: int(p.data.storage_offset() - flat.storage_offset()) for p in parameters}
            for flat, parameters in zip(private_api.flat_weights(engine), self._groups, strict=True)
        ]

    def full_optimizer_state(
        self, optimizer: torch.optim.Optimizer, *, keeps: bool
    ) -> dict[str, torch.Tensor]:
        """The state as CPU tensors named `PARAMETER//STATE`; one kind of a group at a time."""
        names = dict(self._names())
        whole: dict[str, torch.Tensor] = {}
        for stepped, starts in zip(self._stepped, self._starts, strict=True):
            for key, value in optimizer.state.get(stepped, {}).items():
                if value is None:
                    continue
                tensor = torch.as_tensor(value).detach()
                is_piece = key not in STATE_NUMBERS and tensor.numel() == stepped.numel()
                flat = _gathered(tensor, device=self._device) if is_piece else tensor
                if not keeps:
                    continue
                for parameter, start in starts.items():
                    part = flat
                    if is_piece:
                        part = flat[start : start + parameter.numel()].view(parameter.shape)
                    whole[f"{names[parameter]}{STATE_SEPARATOR}{key}"] = part.to("cpu", copy=True)
        return whole

    def load(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, torch.Tensor],
        optimizer_state: Mapping[str, torch.Tensor],
    ) -> None:
        """Writes whole tensors into the model, and this rank's pieces into the optimizer."""
        names = dict(self._names())
        keys = state_keys(optimizer_state, names=list(names.values()))
        with torch.no_grad():
            for name, own in self._model.state_dict().items():
                own.copy_(weights[name])
            private_api.refresh_masters(self._engine)
            optimizer.state.clear()
            for stepped, starts in zip(self._stepped, self._starts, strict=True):
                for parameter, start in starts.items():
                    name = names[parameter]
                    for key in keys.get(name, ()):
                        whole = optimizer_state[f"{name}{STATE_SEPARATOR}{key}"]
                        state = optimizer.state[stepped]
                        if key in STATE_NUMBERS or whole.shape != parameter.shape:
                            state[key] = private_api.number_for(optimizer, whole)
                            continue
                        if not isinstance(state.get(key), torch.Tensor):
                            state[key] = torch.zeros_like(stepped)
                        _write_piece(state[key].view(-1), whole.flatten(), start=start)

    def _names(self) -> Iterator[tuple[nn.Parameter, str]]:
        trained = {parameter for group in self._groups for parameter in group}
        for name, parameter in self._model.named_parameters():
            if parameter in trained:
                yield parameter, name


def _gathered(piece: torch.Tensor, *, device: torch.device) -> torch.Tensor:
    piece = piece.flatten().to(device)
    pieces = [torch.empty_like(piece) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, piece)
    return torch.cat(pieces)


def _write_piece(piece: torch.Tensor, values: torch.Tensor, *, start: int) -> None:
    """Writes what of `values`, which begin at `start` of the whole, lies in this rank's piece."""
    own_start = dist.get_rank() * piece.numel()
    first = max(start, own_start)
    last = min(start + values.numel(), own_start + piece.numel())
    if first < last:
        piece[first - own_start : last - own_start].copy_(values[first - start : last - start])
