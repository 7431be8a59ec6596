"""What a translation has found so far: settings, where each came from, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msam_scale.config.describe import kind_of, shown
from msam_scale.config.problems import Problem


@dataclass
class Findings:
    """Filled in part by part.

    Attributes:
        settings: values by our `section.key`.
        names: the DeepSpeed key that each came from, by our `section.key`.
        problems: what is refused; their keys are DeepSpeed's.
        unsettled: settings of ours whose value was refused.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unsettled: set[str] = field(default_factory=set)

    def set(self, key: str, value: Any, *, source: str) -> None:
        """Takes a value for our setting `key` from the DeepSpeed key `source`."""
        self.settings[key] = value
        self.names[key] = source

    def refuse(self, key: str, message: str, *, unsettles: Iterable[str] = ()) -> None:
        """Notes that the DeepSpeed key `key` cannot stay; `unsettles` are settings it leads to."""
        self.problems.append(Problem(key, message))
        self.unsettled.update(unsettles)

    def take(
        self,
        values: Mapping[str, Any],
        name: str,
        *,
        kind: type | tuple[type, ...],
        works: str,
        where: str,
        unsettles: Iterable[str] = (),
        default: Any = None,
    ) -> Any:
        """`values[name]` where it is of `kind`; the default where it is missing or refused.

        Args:
            values: a section of the DeepSpeed config.
            name: the key in it.
            kind: types that are right; a bool is an int only where bool is asked for.
            works: those types in words.
            where: the section's own name, or nothing at the top level.
            unsettles: settings of ours that the value leads to.
            default: what DeepSpeed takes where the key is missing.
        """
        if name not in values:
            return default
        value = values[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
            return value
        key = f"{where}.{name}" if where else name
        self.refuse(key, f"{shown(value)} is {kind_of(value)}; {works} works", unsettles=unsettles)
        return default
