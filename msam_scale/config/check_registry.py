"""What a cross-section check is: a small function that is given the settings it declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from msam_scale.config.keys import value_at
from msam_scale.config.problems import Problem
from msam_scale.config.schema import Config

Finder = Callable[..., Iterable[Problem]]


@dataclass(frozen=True)
class Check:
    """A rule about settings that are each right by themselves.

    Attributes:
        find: yields what is wrong; called with the settings as keyword arguments and nothing else,
            so that it cannot read what it does not declare.
        reads: the setting behind each keyword argument.
    """

    find: Finder
    reads: Mapping[str, str]


def check(into: list[Check], /, **reads: str) -> Callable[[Finder], Finder]:
    """Decorator that adds a function to a list of checks.

    Args:
        into: the list.
        reads: the setting behind each of the function's keyword arguments.
    """

    def add(find: Finder) -> Finder:
        into.append(Check(find, reads))
        return find

    return add


def run_checks(
    checks: Sequence[Check], *, config: Config, unsettled: AbstractSet[str] = frozenset()
) -> Iterator[Problem]:
    """Runs the checks that do not read an unsettled key, and yields what they find."""
    values = config.to_dict()
    for one in checks:
        if unsettled.isdisjoint(one.reads.values()):
            yield from one.find(**{name: value_at(values, key) for name, key in one.reads.items()})
