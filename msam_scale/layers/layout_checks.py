"""Looks at the first passes for what would tie the result to the layout, or never be trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointError

from data_pipelines.errors import UserError
from msam_scale.layers.generators import Generators
from msam_scale.layers.spectral_norm import SpectralVectors

_logger = logging.getLogger("msam_scale")

_NUM_WATCHED = 2
_MOST_LISTED = 4


@dataclass(frozen=True)
class _Held:
    """A buffer or a parameter, and what tells its value."""

    tensor: torch.Tensor
    value: torch.Tensor

    def differs(self, other: _Held | None) -> bool:
        """Whether it has another value, NaN being one, or is another parameter."""
        if other is None or self.value.shape != other.value.shape:
            return True
        if isinstance(self.tensor, nn.Parameter) and self.tensor is not other.tensor:
            return True
        one, two = self.value, other.value
        return not bool(((one == two) | (one.isnan() & two.isnan())).all())


class FirstPasses:
    """Checks the first two training forwards, and the first backward.

    Says so, once, where the model draws random numbers that no layer has keyed by sample: their
    masks are keyed by slice, so they change with `batch.chunk` and the number of ranks. And where
    the loss has parameters of its own, which nobody trains.

    Args:
        model: what is about to run, laid out on this rank.
        generators: those that it may draw from.
        vectors: buffers that the forward may write to, as the engine sees to them.
        speaks: whether this rank says what it finds.
        gathers: the forward gathers sharded parameters, which looks like writing to them, so only
            buffers are watched.
    """

    def __init__(
        self,
        model: nn.Module,
        generators: Generators,
        *,
        vectors: SpectralVectors,
        speaks: bool,
        gathers: bool,
    ) -> None:
        self._model = model
        self._generators = generators
        self._vectors = vectors
        self._speaks = speaks
        self._gathers = gathers
        self._num_forwards = 0
        self._has_seen_backward = False
        self._written: set[str] = set()
        self._known = {id(parameter) for parameter in model.parameters()}

    @contextmanager
    def forward(self) -> Iterator[None]:
        """One training forward.

        Raises:
            UserError: two forwards in a row change the same buffer, or one changes a parameter:
                its value would depend on how many forwards a rank does. Writing the value that is
                there is fine, and so is a cache that the first forward fills. A write that only
                later forwards do is not seen.
        """
        if self._num_forwards == _NUM_WATCHED:
            yield
            return
        before = self._values()
        states = self._generators.states()
        yield
        self._num_forwards += 1
        after = self._values()
        written = {name for name, held in before.items() if held.differs(after.get(name))}
        for name in sorted(written):
            if name in self._written or isinstance(before[name].tensor, nn.Parameter):
                raise UserError(
                    f"{name}: the model writes to it in its forward, so its value would depend on "
                    "chunks and ranks; only batch normalization's running statistics are kept "
                    "independent of them"
                )
        self._written = written
        if self._num_forwards == 1 and self._speaks and states != self._generators.states():
            _logger.warning(
                "The model draws random numbers outside of Dropout and DropPath layers (dropout "
                "inside fused attention, for example). Both passes of a micro-batch draw the same "
                "ones, keyed by (seed, step, slice): they change with batch.chunk and with the "
                "number of ranks."
            )

    @contextmanager
    def backward(self, loss: torch.Tensor) -> Iterator[None]:
        """The backward of a loss.

        Raises:
            UserError: a block that is computed again does not do what it did in the forward.
        """
        outside = [] if self._has_seen_backward else self._outside(loss)
        self._has_seen_backward = True
        try:
            yield
        except CheckpointError as error:
            raise UserError(
                "activation checkpointing: a block that was computed again kept other tensors than "
                "in its forward, so something in it changes from call to call (a counter, a list "
                "that grows): train without training.activation_checkpointing, or name other "
                "blocks in sharding.blocks"
            ) from error
        # FSDP2's gathered parameters are not the model's, but have passed their gradient on.
        lost = [parameter for parameter in outside if parameter.grad is not None]
        if lost and self._speaks:
            shapes = ", ".join(str(tuple(parameter.shape)) for parameter in lost[:_MOST_LISTED])
            _logger.warning(
                "loss_fn has trainable parameters that are not the model's (%d of them, of shapes "
                "%s%s): no optimizer steps them, so they stay as they are. To train them, give "
                "initialize a module that holds both, whose forward takes the batch and returns "
                "the loss, and loss_fn=lambda model, batch: model(batch); otherwise "
                "requires_grad_(False) says that they are meant to stay.",
                len(lost),
                shapes,
                ", …" if len(lost) > _MOST_LISTED else "",
            )

    def _values(self) -> dict[str, _Held]:
        """What the model holds, by name."""
        ours = {id(tensor) for tensor in self._vectors.tensors()}
        held = {
            name: _Held(buffer, buffer.clone())
            for name, buffer in self._model.named_buffers()
            if id(buffer) not in ours
        }
        if not self._gathers:
            for name, parameter in self._model.named_parameters():
                # A copy would take the memory of all weights; a sum tells two values apart.
                held[name] = _Held(parameter, parameter.detach().sum())
        return held

    def _outside(self, loss: torch.Tensor) -> list[nn.Parameter]:
        """The parameters that a loss was computed from and that are not the model's."""
        found, seen, waiting = [], set(), [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, nn.Parameter) and id(leaf) not in self._known:
                found.append(leaf)
        return found
