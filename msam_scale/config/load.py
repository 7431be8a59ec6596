"""Loads a config: reads it, sets what is overridden, and refuses what cannot be right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msam_scale.config.checks import find_problems
from msam_scale.config.overrides import SOURCE as COMMAND_LINE
from msam_scale.config.overrides import apply_overrides
from msam_scale.config.problems import ConfigError, Problem
from msam_scale.config.reading import Document, read_document
from msam_scale.config.schema import Config
from msam_scale.config.text_keys import remove_other_keys
from msam_scale.config.validation import validate


def load_config(
    source: str | Path | Mapping[str, Any] | Config,
    *,
    overrides: Iterable[str] = (),
    world_size: int | None = None,
    for_training: bool = False,
) -> Config:
    """Loads and checks a config.

    Args:
        source: path of a .yaml, .yml or .json file, a mapping of the same shape, or a config.
        overrides: `section.key=value` strings that go before what the source says; the value is
            YAML. Of several for one key the last one stands.
        world_size: ranks that the mini-batch has to be laid out on; `None`: not known yet.
        for_training: whether what only training needs (model, data, learning rate, length) has to
            be there.

    Returns:
        The config, every default filled in.

    Raises:
        ConfigError: with everything that is wrong, each with its source, key, value and what would
            work.
    """
    document = read_document(source)
    applied = apply_overrides(document.values, overrides=overrides)
    other_keys = remove_other_keys(document.values)
    _name_run(document)
    validated = validate(document.values, unsettled=applied.unsettled)
    problems = [
        *other_keys,
        *validated.problems,
        *find_problems(
            validated.config,
            world_size=world_size,
            for_training=for_training,
            unsettled=validated.unsettled,
        ),
    ]
    problems = [
        _with_source(problem, document=document, overridden=applied.keys) for problem in problems
    ]
    problems += applied.problems
    if problems:
        raise ConfigError(problems)
    return validated.config


def _name_run(document: Document) -> None:
    run = document.values.setdefault("run", {})
    if run is None:
        run = document.values["run"] = {}
    if isinstance(run, dict) and run.get("name") is None:
        run["name"] = document.name


def _with_source(problem: Problem, *, document: Document, overridden: frozenset[str]) -> Problem:
    for key in (problem.key, *problem.related):
        if any(_one_holds_the_other(key, other) for other in overridden):
            return replace(problem, key=key, source=COMMAND_LINE)
    return replace(problem, source=document.source)


def _one_holds_the_other(key: str, other: str) -> bool:
    key = key.replace("[", ".[")  # a position in a list is a level of its own
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
