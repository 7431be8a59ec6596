"""What a setting may hold and what a value is, in words; from the schema, so it cannot go stale."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from msam_scale.config.schema import Config


@cache
def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a whole config, for editors and other tools."""
    schema = Config.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def property_of(path: Sequence[Any]) -> Mapping[str, Any] | None:
    """The part of the JSON Schema that describes one place in the config.

    Args:
        path: keys and list positions from the top of the config down.

    Returns:
        The schema there, or `None` where the schema leaves everything open (inside `args`).
    """
    schema: Mapping[str, Any] = json_schema()
    for part in path:
        if isinstance(part, int):
            options = [schema, *schema.get("anyOf", ())]
            inner = next((option["items"] for option in options if "items" in option), None)
        else:
            inner = schema.get("properties", {}).get(part)
        if inner is None:
            return None
        schema = _resolved(inner)
    return schema


def allowed(schema: Mapping[str, Any]) -> str:
    """The values a schema allows, in words: `a whole number ≥ 1, or null`."""
    schema = _resolved(schema)
    if "anyOf" in schema:
        *most, last = [allowed(option) for option in schema["anyOf"]]
        return ", ".join(most) + f", or {last}"
    if "enum" in schema:
        return listed([shown(value) for value in schema["enum"]], last="or")
    kind = schema.get("type")
    if kind == "integer":
        return f"a whole number{_bounds(schema)}"
    if kind == "number":
        return f"a number{_bounds(schema)}"
    if kind == "array":
        items = _resolved(schema["items"])
        if "properties" not in items:
            return f"a list of {allowed(items)}"
        keys = items["properties"]
        return f"a list of mappings with the keys {listed(list(keys), last='and')}"
    return {
        "string": "text",
        "boolean": "true or false",
        "object": "a mapping",
        "null": "null",
    }[str(kind)]


def shown(value: Any) -> str:
    """A value in a message or a table, close to how a config spells it, cut when it is long."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def kind_of(value: Any) -> str:
    """What a value is, in words: `text`, `a whole number`, ..."""
    kinds: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a mapping",
    }
    return kinds.get(type(value), f"a Python {type(value).__name__}")


def listed(words: Sequence[str], *, last: str) -> str:
    """`a, b or c`, with `last` as the word before the last one."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    target: Mapping[str, Any] = json_schema()["$defs"][str(reference).rsplit("/", 1)[-1]]
    return target


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]}" for name, sign in signs.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""
