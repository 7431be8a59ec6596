"""From a file, a dict or a config to plain nested dicts, or to one clear reason why not."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from msam_scale.config.describe import kind_of
from msam_scale.config.problems import ConfigError, Problem
from msam_scale.config.schema import Config
from msam_scale.config.yaml_text import MOST_CHARACTERS, read_yaml

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Document:
    """What a config source says, before it is checked.

    Attributes:
        values: the top level; its values may be anything.
        source: name of the source in messages.
        name: name of a run that is given none.
        folder: where the source is a file, its folder.
    """

    values: dict[Any, Any]
    source: str
    name: str
    folder: Path | None = None


def read_document(source: str | Path | Mapping[str, Any] | Config) -> Document:
    """Reads a config without checking its settings.

    Args:
        source: path of a .yaml, .yml or .json file, a mapping, or a config.

    Raises:
        ConfigError: the file cannot be read, is not the YAML or JSON that its name says, gives a
            key twice, or has something else than a mapping at the top.
    """
    if isinstance(source, Config):
        return Document(source.to_dict(), source="config", name="run")
    if isinstance(source, Mapping):
        return Document(copy.deepcopy(dict(source)), source="config", name="run")
    path = Path(source)
    values = _parse(path, text=_read_text(path))
    if not isinstance(values, dict):
        holds = "is empty" if values is None else f"holds {kind_of(values)}"
        raise _refusal(path, f"{holds}; a mapping of sections works, such as `batch: {{size: 64}}`")
    return Document(values, source=str(source), name=path.stem, folder=path.parent)


def _read_text(path: Path) -> str:
    if path.suffix.lower() not in _SUFFIXES:
        raise _refusal(path, f"is not named like a config; {', '.join(_SUFFIXES)} files work")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise _refusal(path, "is no file but a pipe or a device; the path of a config file works")
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise _refusal(path, f"cannot be read: {reason}; the path of a config file works") from None
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8 text; save the file as UTF-8"
        raise _refusal(path, reason) from None
    if len(text) > MOST_CHARACTERS:
        raise _refusal(path, f"has more than {MOST_CHARACTERS} characters, which no config needs")
    return text


def _parse(path: Path, *, text: str) -> Any:
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise _refusal(path, f"{yaml_complaint(error, text=text)}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _refusal(path, f"{place}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise _refusal(path, "is nested too deeply to be a config") from None
    except ValueError as error:
        raise _refusal(path, f"cannot be understood: {error}") from None


def yaml_complaint(error: yaml.YAMLError, *, text: str) -> str:
    """One line about broken YAML: line and column (from 1), and what is wrong there."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{place}not valid YAML: {reason}"
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return f"line {line}, column {column}: not valid YAML: {error.reason}"
    return f"not valid YAML: {' '.join(str(error).split())}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object; give it once")
    return values


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number; give a finite number")


def _refusal(path: Path, message: str) -> ConfigError:
    return ConfigError([Problem(key="", message=message, source=str(path))])
