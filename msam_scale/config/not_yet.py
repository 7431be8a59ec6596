"""Settings that the schema knows and this version cannot carry out yet: refused, with what works.

Whoever builds one of them deletes its line here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msam_scale import __version__
from msam_scale.config.check_registry import Check
from msam_scale.config.describe import listed, shown
from msam_scale.config.problems import Problem


@dataclass(frozen=True)
class NotYet:
    """One setting of which only some values are available.

    Attributes:
        key: the setting.
        available: the values that this version can carry out.
        reason: what the others would need.
    """

    key: str
    available: tuple[object, ...]
    reason: str

    def as_check(self) -> Check:
        """The check that refuses every other value."""
        return Check(self._find, reads={"value": self.key})

    def _find(self, *, value: object) -> Iterator[Problem]:
        if value in self.available:
            return
        works = listed([shown(one) for one in self.available], last="and")
        verb = "is" if len(self.available) == 1 else "are"
        yield Problem(
            self.key,
            f"{shown(value)} is not available in version {__version__} ({self.reason}); "
            f"{works} {verb}",
        )


NOT_YET = (
    NotYet("training.ema", (None,), "weights are not averaged yet"),
    NotYet("checkpoint.async", (False,), "checkpoints are written while training waits"),
)
NOT_YET_CHECKS = [entry.as_check() for entry in NOT_YET]
