"""What of a step was not finite, as bits that stay on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# (pass, what), one bit each, the first the lowest.
_FAULTS = (
    ("ascent", "loss"),
    ("ascent", "gradient"),
    ("descent", "loss"),
    ("descent", "gradient"),
)
_STATISTICS = 1 << len(_FAULTS)
_NO_LABELS = _STATISTICS << 1


def fault_bits(
    is_bad: Sequence[torch.Tensor],
    *,
    ascends: bool,
    statistics: torch.Tensor,
    lacks_labels: torch.Tensor,
) -> torch.Tensor:
    """One number for all that is not finite.

    Args:
        is_bad: bool scalars on one device: for each pass of the step, whether its loss and whether
            its gradient is not finite.
        ascends: the step has both passes, and not the descent alone.
        statistics: likewise, whether running statistics would not be finite after the step.
        lacks_labels: a bool scalar on the device: all labels of a rank's micro-batch are -100, of
            which models take a mean over nothing.

    Returns:
        An int64 scalar on the device, 0 where all is well.
    """
    first = 0 if ascends else 2
    assert len(is_bad) == len(_FAULTS) - first
    # Factors from Python: a tensor of them would have to be copied to the device.
    bits = [bad.to(torch.int64) * (1 << first + place) for place, bad in enumerate(is_bad)]
    faults = torch.stack([*bits, statistics.to(torch.int64) * _STATISTICS]).sum()
    return faults + (lacks_labels & (faults > 0)).to(torch.int64) * _NO_LABELS


def fault_words(faults: int) -> str:
    """What was not finite, in words.

    Of an ascent that went wrong the ascent alone: a descent from there means nothing.
    """
    found = [fault for place, fault in enumerate(_FAULTS) if faults >> place & 1]
    if not found:
        assert faults & _STATISTICS, "something was not finite"
        return "the running statistics of batch normalization would not have been finite"
    first_pass = found[0][0]
    whats = " and ".join(f"the {what}" for name, what in found if name == first_pass)
    verb = "were" if " and " in whats else "was"
    cause = ", as all labels of a micro-batch are -100" if faults & _NO_LABELS else ""
    return f"{whats} of the {first_pass} pass {verb} not finite{cause}"
