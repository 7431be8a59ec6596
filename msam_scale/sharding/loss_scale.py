"""Loss scaling for float16: gradients too small for it are multiplied up before the backward."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from msam_scale.config import Config
from msam_scale.config.deepspeed.loss_scale import LossScaleSettings, loss_scale_settings

_SCALE, _PATIENCE, _LAST_OVERFLOW, _STEP = range(4)
_NAMES = ("loss_scale", "hysteresis", "last_overflow", "step")


class LossScale:
    """A scale that halves after an overflow and doubles after `growth_interval` steps without one.

    The rule is that of DeepSpeed's `DynamicLossScaler`, so that float16 means the same under every
    strategy; it is computed on the device. Scales are powers of two: scaling loses no bit.
    """

    def __init__(self, settings: LossScaleSettings, *, device: torch.device) -> None:
        self._settings = settings
        self._state = torch.tensor(
            [settings.initial_scale, settings.hysteresis, -1, 0], dtype=torch.float64, device=device
        )

    @classmethod
    def of(cls, config: Config, *, device: torch.device) -> LossScale | None:
        """The scale that a config leads to; None where nothing computes in float16."""
        if config.precision != "float16":
            return None
        return cls(loss_scale_settings(config), device=device)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss times the scale, float32 or wider."""
        return loss.to(torch.promote_types(loss.dtype, torch.float32)) * self._state[_SCALE]

    def unscale(self, gradient: torch.Tensor) -> None:
        """Divides a gradient by the scale in place."""
        gradient.mul_(self._state[_SCALE].reciprocal().to(gradient.device))

    def update(self, skip: torch.Tensor) -> None:
        """Counts a step: `skip`, a bool scalar on the device, says whether it overflowed."""
        settings = self._settings
        if settings.is_static:
            return
        scale, patience, last_overflow, step = self._state.clone().unbind()
        falls = skip & (patience <= 1)
        num_good = step - last_overflow - 1
        grows = ~skip & (num_good > 0) & (num_good % settings.growth_interval == 0)
        refills = ~skip if settings.consecutive_hysteresis else grows
        lower = (scale / 2).clamp(min=settings.min_scale)
        self._state[_SCALE] = torch.where(falls, lower, torch.where(grows, scale * 2, scale))
        self._state[_PATIENCE] = torch.where(
            skip & ~falls,
            patience - 1,
            torch.where(refills, float(settings.hysteresis), patience),
        )
        self._state[_LAST_OVERFLOW] = torch.where(skip, step, last_overflow)
        self._state[_STEP] += 1

    def counters(self) -> dict[str, float]:
        """The state as plain numbers; waits for the device."""
        return dict(zip(_NAMES, self._state.tolist(), strict=True))

    def load(self, counters: Mapping[str, float]) -> None:
        """Takes what `counters` gave; what is missing stays as it is."""
        for index, name in enumerate(_NAMES):
            if name in counters:
                self._state[index] = counters[name]
