"""How float16's loss is scaled, as a config says it."""

from __future__ import annotations

from dataclasses import dataclass

from msam_scale.config.schema import Config


@dataclass(frozen=True)
class LossScaleSettings:
    """The rule of DeepSpeed's `DynamicLossScaler`, or a scale that stays.

    Attributes:
        initial_scale: the first scale, or the only one.
        growth_interval: steps without an overflow after which the scale doubles.
        hysteresis: overflows until the scale halves; earlier ones only skip their step.
        consecutive_hysteresis: whether every step without an overflow starts that count anew,
            rather than only one that doubles the scale.
        min_scale: the scale falls no lower.
        is_static: whether the scale stays as it is.
    """

    initial_scale: float
    growth_interval: int
    hysteresis: int
    consecutive_hysteresis: bool
    min_scale: float
    is_static: bool


def loss_scale_settings(config: Config) -> LossScaleSettings:
    """The settings in `training.loss_scale`, which has an effect with `precision: float16`."""
    section = config.training.loss_scale
    is_static = section.static is not None
    return LossScaleSettings(
        initial_scale=float(2**section.initial_power)
        if section.static is None
        else float(section.static),
        growth_interval=section.window,
        hysteresis=section.hysteresis,
        consecutive_hysteresis=section.consecutive_hysteresis,
        min_scale=float(section.min),
        is_static=is_static,
    )
