"""Collects everything that is wrong instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from data_pipelines.errors import UserError
from msam_scale.config.keys import all_keys, setting_of
from msam_scale.config.overrides import SOURCE as COMMAND_LINE
from msam_scale.config.problems import ConfigError, Problem


class Findings:
    """Turns the UserErrors raised inside `collected` blocks into one ConfigError.

    Args:
        located: gives a problem its source; `config.load.Loaded` has it.
    """

    def __init__(self, located: Callable[[Problem], Problem]) -> None:
        self._located = located
        self._problems: list[Problem] = []

    @contextmanager
    def collected(self, key: str, *, related: tuple[str, ...] = ()) -> Iterator[None]:
        """A check of the setting `key`; what follows the block runs either way.

        Args:
            key: named in the message, unless that names another one itself.
            related: settings that may be to blame as well; one from the command line is named.
        """
        try:
            yield
        except ConfigError as error:
            self._problems.extend(error.problems)
        except UserError as error:
            # Checks that others use, too, name their key themselves.
            message = str(error)
            named, _, rest = message.partition(": ")
            if setting_of(named.split(".")) in all_keys():
                related, key, message = (*related, key), named, rest
            message = message.removeprefix(f"{key.partition('.')[0]}: ")
            problem = self._located(Problem(key, message, related=related))
            if problem.source == COMMAND_LINE and problem.key != key:
                problem = replace(problem, message=f"{key}: {message}")
            self._problems.append(problem)

    def raise_all(self) -> None:
        """Raises what was found, if anything."""
        if self._problems:
            raise ConfigError(self._problems)
