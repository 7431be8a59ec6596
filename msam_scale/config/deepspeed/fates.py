"""The three things that can become of a key in a DeepSpeed config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

Kind = Literal["flag", "count", "text", "mapping"]

_KINDS: dict[Kind, str] = {
    "flag": "true or false",
    "count": "a whole number ≥ 0",
    "text": "text",
    "mapping": "a mapping",
}


@dataclass(frozen=True)
class PassedOn:
    """DeepSpeed gets it as it is; it changes speed and memory, never the result.

    Attributes:
        kind: what DeepSpeed expects there. DeepSpeed takes `5e8` for a whole number, and so do we.
        default: what DeepSpeed takes where the key is missing.
    """

    kind: Kind
    default: Any = None

    def complaint(self, value: Any) -> str | None:
        """What `value` should have been, in words; None where it is right."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = {
            "flag": isinstance(value, bool),
            "count": number and isfinite(value) and value >= 0 and value == int(value),
            "text": isinstance(value, str),
            "mapping": isinstance(value, dict),
        }
        return None if fits[self.kind] else _KINDS[self.kind]


@dataclass(frozen=True)
class Translated:
    """It becomes settings of ours.

    Attributes:
        into: those settings, as `section.key`.
    """

    into: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """It asks for what the engine does not do.

    Attributes:
        reason: why not, and what works instead.
        accepts: values that ask for what is so in any case.
        default: what DeepSpeed takes where the key is missing. Written out it means no more here
            than left out.
    """

    reason: str
    accepts: Callable[[Any], bool] = lambda value: False
    default: Any = None

    def unless(self, value: Any) -> bool:
        """Whether `value` is fine."""
        return self.accepts(value) or asks_for_nothing(value, default=self.default)


Fate = PassedOn | Translated | Refused


def one_of(*values: Any) -> Callable[[Any], bool]:
    """Exactly these values; true is not 1 here."""
    return lambda value: any(type(value) is type(one) and value == one for one in values)


EITHER = Refused("is not a choice: true or false works", accepts=one_of(True, False))
"""For a flag that changes nothing here, whatever it says."""


def disabled(value: Any) -> bool:
    """False, or a section that is not enabled."""
    return value is False or (isinstance(value, dict) and value.get("enabled", False) is False)


def asks_for_nothing(value: Any, *, default: Any = None) -> bool:
    """Null, DeepSpeed's default, nothing at all, or a section that is off or holds only such."""
    if isinstance(value, dict):
        defaults = default if isinstance(default, dict) else {}
        return value.get("enabled") is False or all(
            asks_for_nothing(inner, default=defaults.get(name)) for name, inner in value.items()
        )
    if isinstance(value, str) and isinstance(default, str):
        return value.lower() == default.lower()  # DeepSpeed does not mind either
    if value is None or (value == default and isinstance(value, bool) == isinstance(default, bool)):
        return True
    return not default and not value
