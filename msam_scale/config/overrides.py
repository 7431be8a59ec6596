"""Settings given as `section.key=value`, as on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from msam_scale.config.describe import kind_of, shown
from msam_scale.config.keys import all_keys, sections, setting_of
from msam_scale.config.problems import Problem
from msam_scale.config.reading import yaml_complaint
from msam_scale.config.suggestions import settings_meant, unknown_key_message
from msam_scale.config.yaml_text import read_yaml

SOURCE = "command line"


@dataclass(frozen=True)
class Applied:
    """What became of the overrides.

    Attributes:
        keys: the dotted keys that were set.
        problems: one for each override that was not applied.
        unsettled: the settings that those would have changed, where they can be told.
    """

    keys: frozenset[str]
    problems: tuple[Problem, ...]
    unsettled: frozenset[str]


def apply_overrides(values: dict[Any, Any], *, overrides: Iterable[str]) -> Applied:
    """Writes overrides into the values of a config, in order: the last one of a key stands.

    Args:
        values: the config as read; changed in place.
        overrides: `section.key=value`, where the value is YAML and the key may go deeper into a
            mapping, as in `model.args.depth=10`.
    """
    keys: set[str] = set()
    problems: list[Problem] = []
    unsettled: set[str] = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not (key and equals):
            reason = f"{override!r} does not set anything; section.key=value works"
            problems.append(Problem(key="", message=reason, source=SOURCE))
            continue
        refusal = _apply(values, key=key, text=text)
        if refusal is None:
            keys.add(key)
            continue
        problems.append(Problem(key, refusal, source=SOURCE))
        path = key.split(".")
        known = setting_of(path) in all_keys()
        unsettled |= {setting_of(path)} if known else settings_meant(path)
    return Applied(frozenset(keys), tuple(problems), frozenset(unsettled))


def _apply(values: dict[Any, Any], *, key: str, text: str) -> str | None:
    """Why the override cannot be applied, or None when it has been."""
    path = key.split(".")
    if setting_of(path) not in all_keys():
        if sections().get(key):
            example = f"{key}.{sections()[key][0]}"
            return f"is a whole section; its keys can be set one by one, such as {example}"
        return unknown_key_message(path)
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        complaint = yaml_complaint(error, text=text)
        return f"{shown(text)} cannot be read: {complaint}; quoted text works"
    except (ValueError, RecursionError) as error:
        return f"{shown(text)} cannot be read: {error}"
    target = values
    for depth, part in enumerate(path[:-1], start=1):
        inner = target.get(part)
        if inner is None:
            inner = target[part] = {}
        if not isinstance(inner, dict):
            return f"cannot be set, because {'.'.join(path[:depth])} is {kind_of(inner)}"
        target = inner
    target[path[-1]] = value
    return None
