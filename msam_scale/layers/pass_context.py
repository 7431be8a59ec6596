"""What the layers must know of the forward-backward pass they are running in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data_pipelines.errors import UserError
from msam_scale.layers import stateless_random


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
        forward_number: grows with every forward, so that a layer can tell a second call within one
            forward from the first call of the next.
        superseded: the layers have been given to another engine.
    """

    def __init__(self, seed: int, *, norm_samples: int, device: torch.device) -> None:
        self.active = False
        self.in_backward = False
        self.records_statistics = False
        self.norm_samples = norm_samples
        self.num_samples = 0
        self.forward_number = 0
        self.superseded = False
        self._device = device
        self._run_key = stateless_random.key(seed, device=device)
        self._step_key = self._run_key
        self._positions = torch.empty(0, dtype=torch.int64, device=device)

    def begin_step(self, step: int) -> None:
        """Derives the key of everything random in this step from (seed, step) alone.

        Raises:
            UserError: the model now belongs to another engine.
        """
        if self.superseded:
            raise UserError("this engine's model was given to another engine, which now trains it")
        self._step_key = stateless_random.fold_in(self._run_key, step)

    @contextmanager
    def chunk(self, positions: range, *, records_statistics: bool) -> Iterator[None]:
        """The forward and backward of the samples at these positions of the mini-batch."""
        self.num_samples = len(positions)
        self._positions = torch.arange(positions.start, positions.stop, device=self._device)
        self.records_statistics = records_statistics
        self.forward_number += 1
        self.active, self.in_backward = True, False
        try:
            yield
        finally:
            self.active = self.in_backward = False

    def sample_uniform(self, layer: int, call: int, numbers_per_sample: int) -> torch.Tensor:
        """Uniform numbers keyed by (seed, step, layer, call, position in the mini-batch).

        Returns:
            float32 of shape (num_samples, numbers_per_sample) in [0, 1). A row does not depend on
            which other samples are in the chunk.
        """
        layer_key = stateless_random.fold_in(stateless_random.fold_in(self._step_key, layer), call)
        keys = stateless_random.keys_of_positions(layer_key, self._positions)
        return stateless_random.uniform(keys, numbers_per_sample)
