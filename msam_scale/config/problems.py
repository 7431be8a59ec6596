"""What is wrong with a config: one line a problem, all of them in one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipelines.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One thing the user has to change.

    Attributes:
        key: the setting, as `section.key`; empty when the problem is with the file as a whole.
        message: the value, why it is wrong, and what would work; one line.
        related: other settings that the problem is as much about. The message must then read well
            under any of them, because the one that came from the command line is named.
        source: where the value came from: a file, `command line`, or `config` for a dict.
        idle_beside: where all that is wrong is that `key` has no effect, the setting that makes it
            so.
    """

    key: str
    message: str
    related: tuple[str, ...] = ()
    source: str = "config"
    idle_beside: str | None = None

    def __str__(self) -> str:
        key = self.key if self.key.isprintable() else repr(self.key)  # one line, whatever it is
        return ": ".join(part for part in (self.source, key, self.message) if part)


class ConfigError(UserError):
    """Every problem of one config.

    Attributes:
        problems: at least one, in the order in which they are printed.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an error without a problem"
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        if len(lines) > 1:
            lines = [f"{len(lines)} problems in the config", *(f"  {line}" for line in lines)]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        # An exception is copied to another process from its arguments, and ours is not the text.
        return type(self), (self.problems,)
