"""Which keys the schema has, what they may hold and what they hold by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from msam_scale.config.schema import Config

# A required key that is missing or wrong is given this value, so that what does not depend on it
# can still be checked. No check reads it.
STAND_INS: Mapping[str, Any] = {"batch.size": 1}


@cache
def sections() -> dict[str, tuple[str, ...]]:
    """The keys of every section, in order; a setting outside all sections has no keys."""
    return {
        name: tuple(field.alias or key for key, field in _fields(annotation).items())
        for name, annotation in ((n, f.annotation) for n, f in Config.model_fields.items())
    }


@cache
def all_keys() -> tuple[str, ...]:
    """Every setting, as `section.key` or, outside all sections, as `key`."""
    return tuple(
        key
        for section, names in sections().items()
        for key in ([f"{section}.{name}" for name in names] or [section])
    )


@cache
def default_of(key: str) -> Any:
    """The value of `key` (one of `all_keys()`, and not a required one) where none is given."""
    assert key not in STAND_INS, f"{key} is required"
    data = nested(STAND_INS)
    return value_at(Config.model_validate(data).to_dict(), key)


def value_at(data: Mapping[str, Any], key: str) -> Any:
    """The value of `key`, `section.key` or `key`, in a complete config as a dict."""
    value: Any = data
    for part in key.split("."):
        value = value[part]
    return value


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"section.key": value}` as `{"section": {"key": value}}`."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        target = result
        for part in path:
            target = target.setdefault(part, {})
        target[last] = value
    return result


def dotted(path: Sequence[Any]) -> str:
    """A place inside the config as messages name it: `objective.phases[0].until`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def setting_of(path: Sequence[Any]) -> str:
    """The setting that a place inside the config belongs to: `model.args` for `model.args.depth`.

    Args:
        path: keys from the top of the config down; more of them than the schema has is fine.
    """
    section = str(path[0])
    return f"{section}.{path[1]}" if sections().get(section) and len(path) > 1 else section


def _fields(annotation: Any) -> dict[str, Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return dict(annotation.model_fields)
    return {}
