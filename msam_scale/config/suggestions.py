"""What a user probably meant by a key that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from msam_scale.config.describe import listed, property_of
from msam_scale.config.keys import all_keys, dotted, sections

# Names that the paper or other tools use for settings that have another name here.
_OTHER_NAMES = {
    "m": "objective.micro_batches",
    "micro_batch": "objective.micro_batches",
    "num_micro_batches": "objective.micro_batches",
    "batch_size": "batch.size",
    "learning_rate": "optimizer.lr",
}


def suggest(path: Sequence[Any]) -> list[str]:
    """The keys that an unknown one may stand for, the likeliest first.

    Args:
        path: the unknown key, from the top of the config down.

    Returns:
        Dotted keys or, for a section that does not exist, the sections with a similar name.
    """
    *parents, name = path
    if name in _OTHER_NAMES:
        return [_OTHER_NAMES[name]]
    elsewhere = [key for key in all_keys() if key.split(".")[-1] == name]
    # A key put into the wrong section is spelled right; anything else is a typing mistake.
    if elsewhere:
        return elsewhere
    if parents and parents[0] not in sections():
        return _closest(dotted(path), among=all_keys())
    return [dotted([*parents, match]) for match in _closest(name, among=_names_in(parents))]


def settings_meant(path: Sequence[Any]) -> frozenset[str]:
    """The settings that an unknown key certainly stands for; none where that is open."""
    meant = suggest(path)
    if len(meant) != 1:
        return frozenset()
    return frozenset([f"{meant[0]}.{name}" for name in sections().get(meant[0], ())] or meant)


def unknown_key_message(path: Sequence[Any]) -> str:
    """One line about a key that does not exist: what was probably meant, or what there is."""
    meant = suggest(path)
    if meant:
        return f"is not a key; did you mean {listed(meant, last='or')}?"
    parents = path[:-1]
    if parents and parents[0] not in sections():
        parents = ()
    where = dotted(parents) or "the config"
    return f"is not a key; the keys of {where} are {listed(_names_in(parents), last='and')}"


def _closest(name: str, *, among: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, among, n=1, cutoff=0.6)


def _names_in(parents: Sequence[Any]) -> list[str]:
    if not parents:
        return list(sections())
    return list((property_of(parents) or {}).get("properties", {}))
