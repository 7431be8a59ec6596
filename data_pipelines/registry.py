"""Looking up a name that a user wrote in a table of what there is."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from data_pipelines.errors import UserError

Entry = TypeVar("Entry")


def lookup(registry: Mapping[str, Entry], name: str, *, kind: str) -> Entry:
    """Returns the entry called `name`.

    Args:
        registry: The entries by name.
        name: What the user asked for.
        kind: What the entries are, for the message: "transform", "data set".

    Raises:
        UserError: There is no such entry; the message gives the nearest names and all of them.
    """
    if name in registry:
        return registry[name]
    nearest = difflib.get_close_matches(name, registry, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
    raise UserError(f"unknown {kind} {name!r}: {hint}There is: {', '.join(sorted(registry))}")
