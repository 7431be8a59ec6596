"""Collects everything that is wrong instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.errors import UserError
from msam_scale.config.keys import all_keys
from msam_scale.config.problems import ConfigError, Problem


class Findings:
    """Turns the UserErrors raised inside `collected` blocks into one ConfigError.

    Args:
        source: the config file, named where a setting does not come from the command line.
        overrides: the settings of the command line.
    """

    def __init__(self, source: str | Path, *, overrides: Iterable[str]) -> None:
        self._source = str(source)
        self._overridden = {override.partition("=")[0] for override in overrides}
        self._problems: list[Problem] = []

    @contextmanager
    def collected(self, key: str) -> Iterator[None]:
        """A check of the setting `key`; what follows the block runs either way."""
        try:
            yield
        except ConfigError as error:
            self._problems.extend(error.problems)
        except UserError as error:
            # Checks that others use, too, name their key themselves.
            message = str(error)
            named, _, rest = message.partition(": ")
            if named in all_keys():
                key, message = named, rest
            message = message.removeprefix(f"{key.partition('.')[0]}: ")
            overridden = any(f"{one}.".startswith(f"{key}.") for one in self._overridden)
            source = "command line" if overridden else self._source
            self._problems.append(Problem(key, message, source=source))

    def raise_all(self) -> None:
        """Raises what was found, if anything."""
        if self._problems:
            raise ConfigError(self._problems)
