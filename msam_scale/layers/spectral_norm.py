"""Spectral normalization whose vectors move once a step, like the statistics of batch norm.

`torch.nn.utils.spectral_norm` and `torch.nn.utils.parametrizations.spectral_norm` (Miyato et al.,
2018) improve their estimate of a weight's singular vectors in every training forward. Both passes
and all chunks of a step share one estimate here: the first forward of a step, which is at w on
every rank, moves it, and the others take it as evaluation does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from msam_scale.layers.pass_context import PassContext

_HOOKS = "_msam_scale_power_iterations"


class SpectralVectors:
    """The estimates of all spectral norms of a model.

    Args:
        model: changed in place by hooks that obey the context.
        context: of the passes.
    """

    def __init__(self, model: nn.Module, context: PassContext) -> None:
        self._owners = list(_owners(model))
        for owner, _ in self._owners:
            hooks = getattr(owner, _HOOKS, None)
            if hooks is None:  # else an earlier engine's
                hooks = _OnceAStep()
                setattr(owner, _HOOKS, hooks)
                # Before torch's own hook, which reads the flag that is set here.
                # Compiled code would keep the mode of its first forward. Said here, and not above
                # the methods: it imports the compiler, which other models do without.
                before, after = (torch.compiler.disable(one) for one in (hooks.before, hooks.after))
                owner.register_forward_pre_hook(before, prepend=True)
                owner.register_forward_hook(after, always_call=True)
            hooks.obey(context)

    def tensors(self) -> list[torch.Tensor]:
        """The buffers as they are now."""
        return [owner.get_buffer(name) for owner, names in self._owners for name in names]

    @contextmanager
    def step(self) -> Iterator[None]:
        """One optimizer step; an error in it leaves the vectors as they were."""
        self._before = [tensor.clone() for tensor in self.tensors()]
        try:
            yield
        except BaseException:
            for tensor, before in zip(self.tensors(), self._before, strict=True):
                tensor.copy_(before)
            raise

    def settle(self, skip: torch.Tensor) -> None:
        """Takes the step's moves back where it is left out.

        Args:
            skip: a bool scalar on the device.
        """
        for tensor, before in zip(self.tensors(), self._before, strict=True):
            tensor.copy_(torch.where(skip, before, tensor))


class _OnceAStep:
    """Hooks of a module that moves its vectors in a forward if it is in training mode."""

    def obey(self, context: PassContext) -> None:
        self._context, self._moved_in = context, context.num_steps_begun

    def before(self, owner: nn.Module, _: Any) -> None:
        self._was_training = owner.training
        if self._context.active:
            owner.training &= self._moved_in != self._context.num_steps_begun
            self._moved_in = self._context.num_steps_begun

    def after(self, owner: nn.Module, *_: Any) -> None:
        owner.training = self._was_training


def _owners(model: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    """Whose training mode decides whether vectors move, with the names of these buffers."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for parametrization in module.parametrizations.values():  # type: ignore[operator]
                for one in parametrization:
                    if hasattr(one, "n_power_iterations"):  # not those of vectors, which are exact
                        yield one, [name for name, _ in one.named_buffers(recurse=False)]
        buffers = {name for name, _ in module.named_buffers(recurse=False)}
        for name, _ in module.named_parameters(recurse=False):
            vectors = {name.removesuffix("_orig") + end for end in ("_u", "_v")}
            if name.endswith("_orig") and vectors <= buffers:
                yield module, sorted(vectors)
