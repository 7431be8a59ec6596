"""Counter-based random numbers (Philox4x32-10) without any generator state.

The only file that uses `torch.func._random`, which torch calls experimental. `check_torch` compares
it with known values, so another torch that draws other numbers stops the run instead of changing
its masks. Keys are the bits of torch's uint64 keys held as int64, which pickles and adds.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.func import _random as torch_random

# 2**32 numbers lie between the streams of two neighbouring positions.
_POSITION_SHIFT = 32
_KNOWN_KEY = (0x5EED, 3, 7)
_KNOWN_NUMBERS = (0.7829461097717285, 0.07469499111175537)


def key(seed: int, *, device: torch.device) -> torch.Tensor:
    """A key, int64 of shape (2,), from a whole number in [0, 2**64)."""
    return torch_random.key(seed, device=device).view(torch.int64)


def fold_in(parent: torch.Tensor, number: int) -> torch.Tensor:
    """The child key of `parent` with this number, which may be any integer of 64 bits."""
    return torch_random.fold_in(parent.view(torch.uint64), number).view(torch.int64)


def keys_of_positions(parent: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One key for each int64 position in [0, 2**31): int64 of shape (len(positions), 2)."""
    seed = parent[:1].expand(len(positions))
    return torch.stack((seed, positions << _POSITION_SHIFT), dim=1)


def uniform(keys: torch.Tensor, numbers_per_key: int) -> torch.Tensor:
    """float32 in [0, 1) of shape (len(keys), numbers_per_key); row i depends on keys[i] alone."""
    numbers = torch.empty(len(keys), numbers_per_key, device=keys.device)
    return torch_random.uniform_(keys.view(torch.uint64).unsqueeze(1), numbers)


@cache
def check_torch() -> None:
    """Stops where the installed torch draws other numbers than the one the engine supports.

    Raises:
        RuntimeError: with the version at hand and the supported one.
    """
    seed, position, child = _KNOWN_KEY
    device = torch.device("cpu")
    keys = keys_of_positions(
        fold_in(key(seed, device=device), child), torch.tensor([0, position], device=device)
    )
    drawn = uniform(keys, 2)[1]
    if not torch.equal(drawn, torch.tensor(_KNOWN_NUMBERS)):
        raise RuntimeError(
            f"torch {torch.__version__} draws {drawn.tolist()} where torch 2.14 draws "
            f"{list(_KNOWN_NUMBERS)}: dropout masks would change; install torch 2.14"
        )
