"""Leaving an optimizer step out without asking the device first."""

from __future__ import annotations

import torch

from msam_scale.errors import NonFiniteError


def step_unless(optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
    """Steps the optimizer where `skip`, a bool scalar on the device, is false.

    torch's fused optimizers read a flag named `found_inf` on the device, the protocol that
    `torch.amp.GradScaler` uses. Others need the value on the host, as does the first step of one
    that makes its state then: skipped on the device, it would leave SGD's momentum uninitialised.
    """
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    stateless = isinstance(optimizer, torch.optim.SGD) and not any(
        group["momentum"] for group in optimizer.param_groups
    )
    if fused and (optimizer.state or stateless):
        device = optimizer.param_groups[0]["params"][0].device  # the host, for offloaded shards
        optimizer.found_inf = skip.to(device, torch.float32)  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
    elif not bool(skip):
        optimizer.step()


class SkippedSteps:
    """Counts skipped steps, in all and in a row, on the device.

    The host looks at the counts one step late on an accelerator, when they have long been
    computed, so that looking does not drain the queue of work.
    """

    def __init__(self, *, limit: int, device: torch.device) -> None:
        self._limit = limit
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # in all, in a row
        self._late = device.type != "cpu"
        self._copy = torch.zeros(2, dtype=torch.int64, pin_memory=self._late)
        self._copied = torch.Event(device.type) if self._late else None

    def count(self, skip: torch.Tensor) -> None:
        """Counts one step.

        Raises:
            NonFiniteError: `limit` steps in a row were skipped.
        """
        if self._copied is not None:
            self._copied.synchronize()
            self._check()
        self._counts[0] += skip
        self._counts[1] = (self._counts[1] + 1) * skip
        self._copy.copy_(self._counts, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        else:
            self._check()

    def _check(self) -> None:
        in_a_row = int(self._copy[1])
        if in_a_row >= self._limit:
            raise NonFiniteError(
                f"{in_a_row} steps in a row had gradients that are not finite "
                f"(objective.max_skipped_steps: {self._limit}); the weights are as they were "
                "before the first of them; a lower optimizer.lr, a longer schedule.warmup or "
                "optimizer.clip_norm may help, or the data may hold bad values"
            )

    @property
    def total(self) -> int:
        """Skipped steps so far; waits for the device."""
        return int(self._counts[0])

    def state(self) -> list[int]:
        """Skipped steps in all and in a row, for a checkpoint."""
        return [int(count) for count in self._counts.cpu()]

    def load(self, state: list[int]) -> None:
        """Takes the counts of a checkpoint."""
        self._counts.copy_(torch.tensor(state, dtype=torch.int64))
        self._copy.copy_(self._counts)
