"""Keys the global generators, for random layers whose masks cannot be keyed by sample."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from msam_scale.layers import stateless_random


class Generators:
    """Seeds torch's generators, of the CPU and of the device, numpy's and Python's by the chunk.

    The seed is a function of (seed, step, chunk); numpy's and Python's are those that models draw
    from at random on the host (SpecAugment in the speech models of transformers, for one). Both
    passes over a chunk then draw the same numbers, and nothing depends on what was drawn
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
        with torch.random.fork_rng(devices=self._devices, device_type=kind), host_generators_kept():
            for generator in self._generators:
                generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield

    def states(self) -> list[Any]:
        """The generators' states, to see whether a forward has drawn from them."""
        torchs = [generator.get_state().tolist() for generator in self._generators]
        name, keys, *rest = np.random.get_state()
        return [*torchs, random.getstate(), (name, np.asarray(keys).tolist(), *rest)]


HostGenerators = tuple[Any, Any]
"""States of Python's and of numpy's global generator."""


def host_generators() -> HostGenerators:
    """Where Python's and numpy's global generators are."""
    return random.getstate(), np.random.get_state()


def set_host_generators(states: HostGenerators) -> None:
    """Puts them where they were."""
    random.setstate(states[0])
    np.random.set_state(states[1])


@contextmanager
def host_generators_kept() -> Iterator[None]:
    """Leaving, they are where they were."""
    states = host_generators()
    try:
        yield
    finally:
        set_host_generators(states)
