"""Keys that are not text, which YAML and Python allow and JSON does not."""

from __future__ import annotations

from typing import Any

from msam_scale.config.describe import shown
from msam_scale.config.keys import dotted
from msam_scale.config.problems import Problem

# Of text only half of a surrogate pair comes here, which JSON and the command line can bring.
_WORKS = {False: "the key in quotes works", True: "characters of Unicode work"}


def remove_other_keys(values: dict[Any, Any]) -> list[Problem]:
    """Takes every key that is not text out of nested mappings and lists.

    Args:
        values: the config as read; changed in place. It may contain itself.

    Returns:
        A problem for each of the keys.
    """
    problems = []
    seen: set[int] = set()
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), values)]
    while waiting:
        path, inner = waiting.pop()
        if not isinstance(inner, (dict, list)) or id(inner) in seen:
            continue
        seen.add(id(inner))
        if isinstance(inner, list):
            waiting += [((*path, index), item) for index, item in enumerate(inner)]
            continue
        for key in [key for key in inner if not _is_text(key)]:
            del inner[key]
            reason = f"{shown(key)} is a key that is not text; {_WORKS[isinstance(key, str)]}"
            problems.append(Problem(dotted(path), reason))
        waiting += [((*path, key), item) for key, item in inner.items()]
    return problems


def _is_text(key: object) -> bool:
    return isinstance(key, str) and not any("\ud800" <= sign <= "\udfff" for sign in key)
