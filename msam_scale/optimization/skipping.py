"""Leaving an optimizer step out without asking the device first."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable

import torch

from msam_scale.errors import NonFiniteError, NonFiniteStepError
from msam_scale.non_finite import fault_words

_logger = logging.getLogger("msam_scale")

_IN_ALL, _IN_A_ROW, _FAULTS, _NUM_COUNTS = range(4)
_WHAT_HELPS = (
    "a lower optimizer.lr, a longer schedule.warmup or optimizer.clip_norm may help, or the data "
    "may hold bad values"
)

_LARGEST = torch.finfo(torch.float16).max
# Gradients may be larger than 1, and some steps halve nothing.
_MORE_STEPS = 20


def step_unless(
    optimizer: torch.optim.Optimizer,
    skip: torch.Tensor,
    *,
    step: Callable[[], object] | None = None,
) -> bool:
    """Steps the optimizer where `skip`, a bool scalar on the device, is false.

    torch's fused optimizers read a flag named `found_inf` on the device, the protocol that
    `torch.amp.GradScaler` uses. Others need the value on the host, as does the first step of one
    that makes its state then: skipped on the device, it would leave SGD's momentum uninitialised.

    Args:
        optimizer: what must not step.
        skip: the flag.
        step: calls `optimizer.step()`; by default it is called as it is.

    Returns:
        Whether `step` was called, with the flag where that was on the device only.
    """
    step = step or optimizer.step
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    stateless = isinstance(optimizer, torch.optim.SGD) and not any(
        group["momentum"] for group in optimizer.param_groups
    )
    if fused and (optimizer.state or stateless):
        device = optimizer.param_groups[0]["params"][0].device  # the host, for offloaded shards
        optimizer.found_inf = skip.to(device, torch.float32)  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        step()
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
        return True
    if bool(skip):
        return False
    step()
    return True


class SkippedSteps:
    """Counts skipped steps, in all and in a row, on the device, and says when it is too many.

    The host looks at the counts one step late on an accelerator, when they have long been
    computed, so that looking does not drain the queue of work.

    Args:
        limit: how many in a row are too many, where they are skipped.
        device: where the steps are computed.
        policy: `objective.non_finite`; with another than `skip` one is too many.
        speaks: whether this rank says which step was skipped, and why.
        loss_scale: gives what the loss is multiplied by before a backward.

    Attributes:
        by_cause: how many steps of this process were skipped, by what was not finite.
    """

    def __init__(
        self,
        *,
        limit: int,
        device: torch.device,
        policy: str = "skip",
        speaks: bool = False,
        loss_scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.by_cause: Counter[str] = Counter()
        self._speaks = speaks
        self._limit = limit
        self._policy = policy
        self._loss_scale = loss_scale
        self._counts = torch.zeros(_NUM_COUNTS, dtype=torch.int64, device=device)
        self._late = device.type != "cpu"
        self._copy = torch.zeros(_NUM_COUNTS, dtype=torch.int64, pin_memory=self._late)
        self._step = 0  # that the copy is of
        self._is_seen = True  # the copy
        self._copied = torch.Event(device.type) if self._late else None

    def count(self, faults: torch.Tensor, *, step: int) -> None:
        """Counts one step.

        Args:
            faults: `StepResult.faults`; 0 for a step that was not skipped.
            step: its number, from 0 on.

        Raises:
            NonFiniteError: `limit` steps in a row were skipped.
            NonFiniteStepError: one was skipped, and the policy allows none.
        """
        if self._late:
            self.settle()
        skip = faults > 0
        self._counts[_IN_ALL] += skip
        self._counts[_IN_A_ROW] = (self._counts[_IN_A_ROW] + 1) * skip
        self._counts[_FAULTS] = faults
        self._copy.copy_(self._counts, non_blocking=True)
        self._step, self._is_seen = step, False
        if self._copied is not None:
            self._copied.record()
        else:
            self._check()

    def settle(self) -> None:
        """Looks at the last step that was counted; on an accelerator waits for its end.

        To be called before what must not be done after a bad step, such as a checkpoint.

        Raises:
            NonFiniteError: as `count`.
        """
        if self._copied is not None:
            self._copied.synchronize()
            self._check()

    def _check(self) -> None:
        _, in_a_row, faults = self._copy.tolist()
        if faults and not self._is_seen:
            self._say(fault_words(faults))
        self._is_seen = True
        if faults and self._policy != "skip":
            fault = fault_words(faults)
            raise NonFiniteStepError(
                f"step {self._step + 1}: {fault} (objective.non_finite: {self._policy}); "
                f"{_WHAT_HELPS}, and objective.non_finite: skip leaves such a step out",
                step=self._step,
                fault=fault,
            )
        if faults and in_a_row >= self._limit:
            raise NonFiniteError(
                f"{in_a_row} steps in a row had a loss or gradients that are not finite "
                f"(objective.max_skipped_steps: {self._limit}), the last of them step "
                f"{self._step + 1}: {fault_words(faults)}; the weights are as they were before the "
                f"first of them; {self._what_helps()}"
            )

    def _what_helps(self) -> str:
        scale = self._loss_scale()
        if scale <= _LARGEST:
            return _WHAT_HELPS
        steps = self._limit + math.ceil(math.log2(scale / _LARGEST)) + _MORE_STEPS
        return (
            f"the loss scale is still {scale:.4g} (training.loss_scale, fp16 of a DeepSpeed JSON), "
            f"and float16 ends at {_LARGEST:.0f}: an initial power of 16, the default, works, or "
            f"objective.max_skipped_steps: {steps}, as each such step halves it"
        )

    def _say(self, cause: str) -> None:
        """Says so for the 1st, 2nd, 4th, 8th … step of a cause; in float16 they are no surprise."""
        self.by_cause[cause] += 1
        count = self.by_cause[cause]
        if self._speaks and count.bit_count() == 1:
            _logger.warning(
                "Step %d is skipped: %s (%d %s so far).",
                self._step + 1,
                cause,
                count,
                "such step" if count == 1 else "such steps",
            )

    @property
    def total(self) -> int:
        """Skipped steps so far; waits for the device."""
        return int(self._counts[_IN_ALL])

    def state(self) -> list[int]:
        """Skipped steps in all and in a row, for a checkpoint."""
        return [int(count) for count in self._counts[:_FAULTS].cpu()]

    def load(self, state: list[int]) -> None:
        """Takes the counts of a checkpoint."""
        self._counts.copy_(torch.tensor([*state, 0], dtype=torch.int64))
        self._copy.copy_(self._counts)
