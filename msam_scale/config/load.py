"""Loads a config: reads it, sets what is overridden, and refuses what cannot be right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msam_scale.config.checks import find_problems
from msam_scale.config.deepspeed.section_file import read_section_file
from msam_scale.config.deepspeed.translation import (
    Translation,
    is_deepspeed_config,
    translate,
)
from msam_scale.config.keys import default_of, value_at
from msam_scale.config.overrides import SOURCE as COMMAND_LINE
from msam_scale.config.overrides import apply_overrides
from msam_scale.config.problems import ConfigError, Problem
from msam_scale.config.reading import Document, read_document
from msam_scale.config.schema import Config
from msam_scale.config.text_keys import remove_other_keys
from msam_scale.config.validation import validate

# Settings by which a config consents to code or commands that it names.
_CONSENT = ("data.allow_commands",)


@dataclass(frozen=True)
class Loaded:
    """A config, and what its reader is to know of it.

    Attributes:
        config: every default filled in.
        notes: what it means that its author may not expect, a line each.
        located: gives a problem that is found later its source, and the name that its setting has
            there.
    """

    config: Config
    notes: tuple[str, ...]
    located: Callable[[Problem], Problem]


def load_config(
    source: str | Path | Mapping[str, Any] | Config,
    *,
    overrides: Iterable[str] = (),
    world_size: int | None = None,
    for_training: bool = False,
) -> Config:
    """Loads and checks a config.

    Args:
        source: path of a .yaml, .yml or .json file, a mapping of the same shape, or a config; a
            DeepSpeed config with an `msam` section is taken for what it means in our terms.
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
    return load(
        source, overrides=overrides, world_size=world_size, for_training=for_training
    ).config


def load(
    source: str | Path | Mapping[str, Any] | Config,
    *,
    overrides: Iterable[str] = (),
    world_size: int | None = None,
    for_training: bool = False,
    allow_code: bool = True,
) -> Loaded:
    """As `load_config`, with all that there is to say of the config.

    Args:
        source: as for `load_config`.
        overrides: as for `load_config`.
        world_size: as for `load_config`.
        for_training: as for `load_config`.
        allow_code: whether the config may consent to code and commands that it names. One that came
            with a run or a checkpoint may not: consent is its user's, in the call.
    """
    document = read_document(source)
    other_keys = remove_other_keys(document.values)
    document, translation = _translated(document, world_size=world_size)
    read_section_file(document)  # first, so that overrides reach into it
    applied = apply_overrides(document.values, overrides=overrides)
    unreadable = read_section_file(document)  # again, because an override may name another
    other_keys += remove_other_keys(document.values)
    _name_run(document)
    unsettled = applied.unsettled | translation.unsettled
    if unreadable:
        unsettled |= {"sharding.deepspeed"}
    validated = validate(document.values, unsettled=unsettled)

    def located(problem: Problem) -> Problem:
        return _with_source(
            problem, document=document, overridden=applied.keys, names=translation.names
        )

    def find(config: Config) -> list[Problem]:
        return find_problems(
            config,
            world_size=world_size,
            for_training=for_training,
            unsettled=validated.unsettled,
        )

    config, notes = validated.config, list(translation.notes)
    if not allow_code:
        config = _with_defaults(config, _CONSENT)
    found = find(config)
    while idle := [one for one in found if _is_left_idle(one, overridden=applied.keys)]:
        notes += [_idle_note(located(one), config) for one in idle]
        config = _with_defaults(config, [one.key for one in idle])
        found = find(config)
    problems = [*other_keys, *translation.problems, *unreadable, *validated.problems, *found]
    problems = [*map(located, problems), *applied.problems]
    if problems:
        raise ConfigError(problems)
    return Loaded(config, tuple(notes), located)


def _is_left_idle(problem: Problem, *, overridden: frozenset[str]) -> bool:
    """Whether the command line takes a setting's effect away that it does not itself set."""
    return problem.idle_beside in overridden and not any(
        _one_holds_the_other(problem.key, other) for other in overridden
    )


def _idle_note(problem: Problem, config: Config) -> str:
    beside = value_at(config.to_dict(), str(problem.idle_beside))
    return (
        f"{problem.source}: {problem.key}: left out: it has no effect with "
        f"{problem.idle_beside}={'null' if beside is None else beside} of the {COMMAND_LINE}"
    )


def _with_defaults(config: Config, keys: Sequence[str]) -> Config:
    values = config.to_dict()
    for key in keys:
        section, _, name = key.rpartition(".")
        values[section][name] = default_of(key)
    return Config.model_validate(values)


def _name_run(document: Document) -> None:
    run = document.values.setdefault("run", {})
    if run is None:
        run = document.values["run"] = {}
    if isinstance(run, dict) and run.get("name") is None:
        run["name"] = document.name


def _translated(document: Document, *, world_size: int | None) -> tuple[Document, Translation]:
    """The document in sections of ours, whichever it is written in."""
    if not is_deepspeed_config(document.values):
        return document, Translation({}, names={}, problems=(), unsettled=frozenset())
    try:
        translation = translate(document.values, world_size=world_size)
    except RecursionError:
        message = "contains itself, or is nested too deeply to be a config"
        raise ConfigError([Problem("", message, source=document.source)]) from None
    return replace(document, values=translation.values), translation


def _with_source(
    problem: Problem,
    *,
    document: Document,
    overridden: frozenset[str],
    names: Mapping[str, str],
) -> Problem:
    for key in (problem.key, *problem.related):
        if any(_one_holds_the_other(key, other) for other in overridden):
            return replace(problem, key=key, source=COMMAND_LINE)
    return replace(problem, key=_as_written(problem.key, names=names), source=document.source)


def _as_written(key: str, *, names: Mapping[str, str]) -> str:
    """A setting under the name that a DeepSpeed config has for it."""
    for ours, theirs in names.items():
        if key == ours or key.startswith((f"{ours}.", f"{ours}[")):
            return (theirs + key.removeprefix(ours)).removeprefix(".") or key
    return key


def _one_holds_the_other(key: str, other: str) -> bool:
    key = key.replace("[", ".[")  # a position in a list is a level of its own
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
