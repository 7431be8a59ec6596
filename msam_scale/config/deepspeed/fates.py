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
    """

    kind: Kind

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
        unless: values that ask for nothing, or for what is so in any case.
    """

    reason: str
    unless: Callable[[Any], bool] = lambda value: False


Fate = PassedOn | Translated | Refused


def one_of(*values: Any) -> Callable[[Any], bool]:
    """Exactly these values; true is not 1 here."""
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def disabled(value: Any) -> bool:
    """False, or a section that is not enabled."""
    return value is False or (isinstance(value, dict) and value.get("enabled", False) is False)


def asks_for_nothing(value: Any) -> bool:
    """A section that holds nothing but false and null, at any depth."""
    if isinstance(value, dict):
        return all(asks_for_nothing(inner) for inner in value.values())
    return value is False or value is None
