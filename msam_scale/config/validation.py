"""Checks values against the schema: what is right becomes a config, the rest becomes problems."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from msam_scale.config.describe import allowed, kind_of, property_of, shown
from msam_scale.config.keys import STAND_INS, all_keys, dotted, sections, setting_of
from msam_scale.config.problems import Problem
from msam_scale.config.schema import Config
from msam_scale.config.suggestions import settings_meant, unknown_key_message

Path = tuple[Any, ...]

# Union members that the value does not fit add errors about its type; a more exact one is kept.
_TYPE_ERRORS = frozenset(
    f"{kind}_type" for kind in ("bool", "dict", "float", "int", "model", "string", "tuple")
)
# A list without the items that are refused, each with an error of its own, may also be too short.
_FOLLOWING_ERRORS = _TYPE_ERRORS | {"too_short"}
_BOUNDS = {
    "greater_than": ("not above", "gt"),
    "greater_than_equal": ("below", "ge"),
    "less_than": ("not below", "lt"),
    "less_than_equal": ("above", "le"),
}


@dataclass(frozen=True)
class Validated:
    """The outcome of checking values against the schema.

    Attributes:
        config: the settings that are right; where one is not, its default or a stand-in.
        problems: everything the schema refuses.
        unsettled: the settings that are not known because their value was refused.
    """

    config: Config
    problems: tuple[Problem, ...]
    unsettled: frozenset[str]


def validate(values: dict[Any, Any], *, unsettled: frozenset[str]) -> Validated:
    """Checks values against the schema, and keeps what is right of them.

    Args:
        values: sections with their keys, which are text. A section without a value counts as empty,
            so that all of its lines can be commented out.
        unsettled: settings whose value is already known to be wrong.
    """
    values = copy.copy(values)
    for section, names in sections().items():
        if names and values.get(section) is None:
            values[section] = {}
    try:
        return Validated(Config.model_validate(values), problems=(), unsettled=unsettled)
    except ValidationError as error:
        errors = _by_place(error.errors(include_url=False), values=values)

    doubtful = set(unsettled)
    for path, detail in errors.items():
        if detail["type"] == "extra_forbidden":
            # One mistake, one problem: what a misspelled key stands for is not missing as well.
            doubtful.update(settings_meant(path))
    problems = tuple(
        Problem(dotted(path), _message(path, detail=detail))
        for path, detail in errors.items()
        if detail["type"] != "missing" or doubtful.isdisjoint({dotted(path), setting_of(path)})
    )
    for path in errors:
        setting = setting_of(path)
        names = sections().get(setting, ())
        doubtful.update([f"{setting}.{name}" for name in names] or [setting])
    kept = _settings(values, without=doubtful)
    return Validated(Config.model_validate(kept), problems, frozenset(doubtful))


def _by_place(
    errors: Sequence[ErrorDetails], *, values: dict[Any, Any]
) -> dict[Path, ErrorDetails]:
    """One error for each place; of several, the one that says most."""
    found: dict[Path, ErrorDetails] = {}
    for detail in errors:
        path = _place(detail, values=values)
        if path not in found or detail["type"] not in _TYPE_ERRORS:
            found[path] = detail
    return {
        path: detail
        for path, detail in found.items()
        if detail["type"] not in _FOLLOWING_ERRORS
        or not any(other[: len(path)] == path and other != path for other in found)
    }


def _place(detail: ErrorDetails, *, values: dict[Any, Any]) -> Path:
    """Where an error is. Pydantic's location also names the union members that it tried."""
    path: Path = ()
    inner: Any = values
    for part in detail["loc"]:
        in_mapping = isinstance(inner, dict) and part in inner
        if in_mapping or (isinstance(inner, (list, tuple)) and isinstance(part, int)):
            inner = inner[part]
            path = (*path, part)
        elif detail["type"] == "missing" and part == detail["loc"][-1]:
            path = (*path, part)
    return path


def _message(path: Path, *, detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        return unknown_key_message(path)
    schema = property_of(path)
    works = f"{allowed(schema)} works" if schema else "finite numbers, text, lists, mappings work"
    if kind == "missing":
        return f"is missing; {works}"
    value = detail["input"]
    if kind == "value_error":
        return f"{shown(value)} {detail['ctx']['error']}"
    return f"{shown(value)} {_reason(detail)}; {works}"


def _reason(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        bound = detail["ctx"][name]
        return f"is {words} {int(bound) if bound == int(bound) else bound}"
    if kind in _TYPE_ERRORS:
        return f"is {kind_of(detail['input'])}"
    return {
        "finite_number": "is not a finite number",
        "invalid-json-value": f"is {kind_of(detail['input'])}, which a config file cannot hold",
        "literal_error": "is not one of the choices",
        "recursion_loop": "contains itself",
        "string_too_short": "is empty text",
        "too_short": "is an empty list",
    }.get(kind, f"is refused: {detail['msg']}")


def _settings(values: dict[Any, Any], *, without: set[str]) -> dict[str, Any]:
    """The known settings of `values` except some, with stand-ins where those are required."""
    kept: dict[str, Any] = {}
    for key in all_keys():
        section, _, name = key.rpartition(".")
        source = values.get(section) if section else values
        if key in without or not isinstance(source, dict) or name not in source:
            if key not in STAND_INS:
                continue
            value = STAND_INS[key]
        else:
            value = source[name]
        target = kept.setdefault(section, {}) if section else kept
        target[name] = value
    return kept
