"""Keys torch's global generators, for random layers whose masks cannot be keyed by sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from msam_scale.layers import stateless_random


class Generators:
    """Seeds the generators of the CPU and of the device by (seed, step, chunk).

    Both passes over a chunk then draw the same numbers, and nothing depends on what was drawn
    before. The user's own generator states are put back after each chunk.
    """

    def __init__(self, seed: int, *, device: torch.device) -> None:
        self._key = stateless_random.key(seed, device=torch.device("cpu"))
        self._devices = [] if device.type == "cpu" else [device]
        self._generators = [torch.default_generator]
        for one in self._devices:
            index = one.index if one.index is not None else 0
            self._generators.append(torch.get_device_module(one).default_generators[index])

    def begin_step(self, step: int) -> None:
        """Derives the key of the step from (seed, step)."""
        self._step_key = stateless_random.fold_in(self._key, step)

    @contextmanager
    def chunk(self, first_position: int) -> Iterator[None]:
        """Seeds for the chunk that starts at this position; outside, states are as before.

        Not the whole step: the caller's iterator over micro-batches draws from its own states.
        """
        key = stateless_random.fold_in(self._step_key, first_position)
        seed = int(key[0])  # a CPU tensor: nothing waits for a device
        kind = self._devices[0].type if self._devices else "cuda"
        with torch.random.fork_rng(devices=self._devices, device_type=kind):
            for generator in self._generators:
                generator.manual_seed(seed)
            yield

    def states(self) -> list[torch.Tensor]:
        """The generators' states, to see whether a forward has drawn from them."""
        return [generator.get_state() for generator in self._generators]
