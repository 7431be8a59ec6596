"""YAML as its version 1.2 defines it, so that a config means the same in YAML and in JSON.

PyYAML follows version 1.1, where `1e-3` is text, `no` is false, `1:30` is ninety and `010` is
eight. Here numbers are numbers, only `true` and `false` are booleans, and everything else is text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# In this order: what is an integer also looks like a float.
_CORE_SCHEMA = [
    ("bool", _BOOLEAN, "tTfF"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", re.compile("<<"), "<"),
]


# A thousand times what our longest config has. PyYAML takes seconds for so many.
MOST_CHARACTERS = 1 << 18
# Sixty-four bits have less, however they are written; printing more can fail or take minutes.
_MOST_DIGITS = 100

_MOST_LEVELS = 50


class _Loader(yaml.SafeLoader):
    """Safe loader with the scalars of YAML 1.2 that refuses a key given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # Python's own limit is found late and slowly here.
        if self._depth == _MOST_LEVELS:
            raise RecursionError
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > _MOST_DIGITS:
            raise ValueError(f"a whole number of {len(text)} digits")
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Dumper(yaml.SafeDumper):
    """Safe dumper that quotes text which a 1.1 or a 1.2 reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # Only double quotes have escapes, and PyYAML alone does not use them for all line breaks.
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _name, _pattern, _first in _CORE_SCHEMA:
    _anchored = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _anchored, list(_first))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _anchored, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Dumper.add_representer(str, _Dumper.represent_text)


def read_yaml(text: str) -> Any:
    """The one document in `text`; `None` when there is none.

    Raises:
        yaml.YAMLError: it is not YAML, has a tag that is not plain data, or gives a key twice.
        ValueError: a scalar has a tag it does not fit, such as `!!int text`; or it is longer than
            any config, as written or with what its aliases stand for.
        RecursionError: it is nested too deeply.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it has more than {MOST_CHARACTERS} characters, which no config needs")
    loader = _Loader(text)  # a SafeLoader: plain data only
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, sizes={}) > MOST_CHARACTERS:
            raise ValueError(
                f"its aliases (*name) stand for more than {MOST_CHARACTERS} characters, which no "
                "config needs"
            )
        return loader.construct_document(node)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        # What PyYAML's own constructors raise for `!!bool text` and the like.
        raise ValueError(f"a value does not fit its tag: {error}") from error
    finally:
        loader.dispose()


def _size(node: yaml.Node, *, sizes: dict[int, int]) -> int:
    """Characters and values of a node, written out without aliases.

    A few aliases of aliases stand for billions of values ("billion laughs"), which share memory
    here and no longer do where they are merged, checked or written.

    Args:
        node: may contain itself, which is refused elsewhere.
        sizes: of the nodes that were met, by their ids.
    """
    if id(node) in sizes:
        return sizes[id(node)]
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    sizes[id(node)] = 0
    parts = node.value
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    sizes[id(node)] = 1 + sum(_size(part, sizes=sizes) for part in parts)
    return sizes[id(node)]


def write_yaml(data: dict[str, Any]) -> str:
    """`data` as YAML in block style, in the order of its keys."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
