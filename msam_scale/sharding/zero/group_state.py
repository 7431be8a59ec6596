"""The optimizer's state under ZeRO-1 and ZeRO-2, out of a rank's pieces and back into them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from msam_scale.ranks import Ranks
from msam_scale.sharding.pieces import Piece, share_of
from msam_scale.sharding.saved import SavedTensors
from msam_scale.sharding.state import STATE_NUMBERS, STATE_SEPARATOR, state_keys, state_name
from msam_scale.sharding.zero import private_api


class GroupState:
    """Where each parameter lies in its group's flat weights, of which ranks step equal pieces.

    Args:
        engine: DeepSpeed's.
        model: its trained parameters are views of the flat weights.
    """

    def __init__(self, engine: Any, model: nn.Module) -> None:
        self._engine, self._model = engine, model
        self._stepped = private_api.stepped_tensors(engine)
        self._groups = private_api.grouped_parameters(engine)
        self._starts = [
            {p: int(p.data.storage_offset() - flat.storage_offset()) for p in parameters}
            for flat, parameters in zip(private_api.flat_weights(engine), self._groups, strict=True)
        ]

    def optimizer_pieces(self, optimizer: torch.optim.Optimizer, *, ranks: Ranks) -> list[Piece]:
        """What this rank saves: the parts of parameters in its pieces, and its part of numbers."""
        names = dict(self._names())
        own: list[Piece] = []
        whole: list[Piece] = []
        for stepped, starts in zip(self._stepped, self._starts, strict=True):
            for key, value in optimizer.state.get(stepped, {}).items():
                if value is None:
                    continue
                tensor = torch.as_tensor(value).detach()
                is_piece = key not in STATE_NUMBERS and tensor.numel() == stepped.numel()
                for parameter, start in starts.items():
                    name = state_name(names[parameter], key)
                    if not is_piece:
                        whole.append(Piece.whole(name, tensor))
                        continue
                    begin = ranks.rank * tensor.numel()
                    first, last = _common(start, parameter.numel(), begin, tensor.numel())
                    if first < last:
                        values = tensor.view(-1)[first - begin : last - begin]
                        own.append(Piece(name, tuple(parameter.shape), first - start, values))
        return [*own, *share_of(whole, index=ranks.rank, count=ranks.size)]

    def load(
        self,
        optimizer: torch.optim.Optimizer,
        weights: SavedTensors,
        optimizer_state: SavedTensors | None,
    ) -> None:
        """Writes saved tensors into the model, and this rank's pieces into the optimizer."""
        names = dict(self._names())
        keys = state_keys(optimizer_state or {}, names=list(names.values()))
        with torch.no_grad():
            for name, own in self._model.state_dict().items():
                own.copy_(weights[name])
            private_api.refresh_masters(self._engine)
            if optimizer_state is None:
                return
            optimizer.state.clear()
            for stepped, starts in zip(self._stepped, self._starts, strict=True):
                for parameter, start in starts.items():
                    for key in keys.get(names[parameter], ()):
                        name = f"{names[parameter]}{STATE_SEPARATOR}{key}"
                        state = optimizer.state[stepped]
                        if key in STATE_NUMBERS or optimizer_state.shape(name) != parameter.shape:
                            number = optimizer_state[name]
                            state[key] = private_api.number_for(optimizer, number)
                            continue
                        if not isinstance(state.get(key), torch.Tensor):
                            state[key] = torch.zeros_like(stepped)
                        _write_common(state[key].view(-1), optimizer_state, name, start=start)

    def _names(self) -> Iterator[tuple[nn.Parameter, str]]:
        trained = {parameter for group in self._groups for parameter in group}
        for name, parameter in self._model.named_parameters():
            if parameter in trained:
                yield parameter, name


def _write_common(piece: torch.Tensor, saved: SavedTensors, name: str, *, start: int) -> None:
    """Writes what of a saved tensor, which begins at `start` of its group, is in this rank's."""
    begin = dist.get_rank() * piece.numel()
    first, last = _common(start, saved.shape(name).numel(), begin, piece.numel())
    if first < last:
        part = saved.elements(name, first - start, last - start)
        piece[first - begin : last - begin].copy_(part)


def _common(start: int, length: int, other_start: int, other_length: int) -> tuple[int, int]:
    """What two ranges have in common; the first number is not below the second if nothing."""
    return max(start, other_start), min(start + length, other_start + other_length)
