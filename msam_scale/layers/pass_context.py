"""What the layers must know of the forward-backward pass they are running in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from data_pipelines.errors import UserError
from msam_scale.layers import stateless_random
from msam_scale.layers.generators import (
    HostGenerators,
    host_generators,
    host_generators_kept,
    set_host_generators,
)


class PassContext:
    """Shared by an engine and the layers it has installed; the engine writes, the layers read.

    Outside the engine's passes `active` is false and every layer behaves as the class it was made
    from, so the model can be evaluated, exported or trained by other code.

    Attributes:
        active: a pass of the engine is running.
        in_backward: its forward is over, so a forward seen now is a recomputation (activation
            checkpointing).
        records_statistics: batch statistics of this pass count towards the running statistics.
        norm_samples: consecutive samples that batch normalization normalises together.
        num_samples: samples of the chunk that is in the model now.
        is_recomputing: a block computes its activations once more, with its calls counted as in
            its forward.
        num_steps_begun: grows with every step, done or not.
        superseded: the layers have been given to another engine.
    """

    def __init__(self, seed: int, *, norm_samples: int, device: torch.device) -> None:
        self.active = False
        self.in_backward = False
        self.records_statistics = False
        self.norm_samples = norm_samples
        self.num_samples = 0
        self.is_recomputing = False
        self.num_steps_begun = 0
        self.superseded = False
        self._device = device
        self._run_key = stateless_random.key(seed, device=device)
        self._step_key = self._run_key
        self._positions = torch.empty(0, dtype=torch.int64, device=device)
        self._calls: Counter[int] = Counter()

    def begin_step(self, step: int) -> None:
        """Derives the key of everything random in this step from (seed, step) alone.

        Raises:
            UserError: the model now belongs to another engine.
        """
        if self.superseded:
            raise UserError("this engine's model was given to another engine, which now trains it")
        self.num_steps_begun += 1
        self._step_key = stateless_random.fold_in(self._run_key, step)

    @contextmanager
    def chunk(self, positions: range, *, records_statistics: bool) -> Iterator[None]:
        """The forward and backward of the samples at these positions of the mini-batch."""
        self.num_samples = len(positions)
        self._positions = torch.arange(positions.start, positions.stop, device=self._device)
        self.records_statistics = records_statistics
        self._calls.clear()
        self.active, self.in_backward = True, False
        try:
            yield
        finally:
            self.active = self.in_backward = False

    def call_of(self, layer: int) -> int:
        """The number of earlier calls of this layer in the same forward.

        Raises:
            UserError: the layer was called several times and is recomputed by checkpointing other
                than ours, which does not say which call this is.
        """
        if self.in_backward and not self.is_recomputing:
            if self._calls[layer] > 1:
                raise UserError(
                    f"keyed dropout layer {layer} was called {self._calls[layer]} times in one "
                    "forward and is now recomputed by the model's own activation checkpointing: "
                    "which call this is cannot be told; training.activation_checkpointing in its "
                    "place can, or give each call a layer of its own"
                )
            return 0
        self._calls[layer] += 1
        return self._calls[layer] - 1

    def recomputation(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """What `torch.utils.checkpoint` takes as `context_fn`, for a block's two forwards.

        Called where a block begins its forward: the second one counts calls of layers from there,
        and draws from numpy's and Python's generators what the first one did.
        """
        calls, generators = self._calls.copy(), host_generators()
        # Entered once for each backward through the block: a second derivative has two.
        return nullcontext(), _Anew(lambda: self._recomputing(calls.copy(), generators))

    @contextmanager
    def _recomputing(self, calls: Counter[int], generators: HostGenerators) -> Iterator[None]:
        before = self._calls
        self._calls, self.is_recomputing = calls, True
        try:
            with host_generators_kept():
                set_host_generators(generators)
                yield
        finally:
            self._calls, self.is_recomputing = before, False

    def sample_uniform(self, layer: int, call: int, numbers_per_sample: int) -> torch.Tensor:
        """Uniform numbers keyed by (seed, step, layer, call, position in the mini-batch).

        Returns:
            float32 of shape (num_samples, numbers_per_sample) in [0, 1). A row does not depend on
            which other samples are in the chunk.
        """
        layer_key = stateless_random.fold_in(stateless_random.fold_in(self._step_key, layer), call)
        keys = stateless_random.keys_of_positions(layer_key, self._positions)
        return stateless_random.uniform(keys, numbers_per_sample)


class _Anew(AbstractContextManager[None]):
    """A context that is made each time it is entered, one time after the other."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make

    def __enter__(self) -> None:
        self._entered = self._make()
        self._entered.__enter__()

    def __exit__(self, *raised: Any) -> bool | None:
        return self._entered.__exit__(*raised)
