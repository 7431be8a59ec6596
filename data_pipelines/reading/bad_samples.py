"""What happens when a sample is damaged, and the list of those that were."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from data_pipelines.errors import UserError

_logger = logging.getLogger("data_pipelines")


@dataclass(frozen=True)
class BadDataPolicy:
    """What happens when a sample is damaged or cannot be decoded.

    Only what is wrong with the data itself counts: missing shards and servers that cannot be
    reached always raise, for whether they are there is a matter of luck, which must not decide what
    a model is trained on.

    Attributes:
        kind: `raise` stops with an error that names shard and sample. `substitute` takes another
            sample in its place, which follows from the seed, the epoch and the sample alone.
        seed: Of the stand-ins; only for `substitute`.
        max_samples: More damaged samples than this raise; only for `substitute`.
        max_fraction: So does a larger share of all samples; only for `substitute`.

    Raises:
        UserError: A setting is unknown, out of range or has no effect.
    """

    kind: Literal["raise", "substitute"] = "raise"
    seed: int = 0
    max_samples: int = 100
    max_fraction: float = 0.001

    def __post_init__(self) -> None:
        if self.kind not in ("raise", "substitute"):
            raise UserError(f"on_error: {self.kind!r} is unknown; there is: raise, substitute")
        settings = (self.seed, self.max_samples, self.max_fraction)
        defaults = (BadDataPolicy.seed, BadDataPolicy.max_samples, BadDataPolicy.max_fraction)
        if self.kind == "raise" and settings != defaults:
            raise UserError(
                "on_error: seed, max_samples and max_fraction have no effect on 'raise'; leave "
                "them out, or use 'substitute'"
            )
        if not 0 <= self.seed < 1 << 63:
            raise UserError(f"on_error: seed: {self.seed} is not in 0 … 2**63 - 1")
        if self.max_samples < 1:
            raise UserError(f"on_error: max_samples: {self.max_samples} is not positive")
        if not 0 < self.max_fraction <= 1:
            raise UserError(f"on_error: max_fraction: {self.max_fraction} is not in (0, 1]")


class BadSample(NamedTuple):
    """A damaged sample.

    Attributes:
        sample_id: Its number in the split.
        where: Shard and name.
        what: What is wrong with it.
    """

    sample_id: int
    where: str
    what: str


class BadSamples:
    """The damaged samples that were met, each once, for the log and the checkpoint."""

    def __init__(self, policy: BadDataPolicy, *, num_samples: int) -> None:
        """Starts with none.

        Args:
            policy: What is allowed.
            num_samples: How many samples the split has.

        Raises:
            UserError: The policy is to substitute, but its fraction of so few samples is none.
        """
        self._num_samples = num_samples
        self._most = 0
        if policy.kind == "substitute":
            self._most = min(policy.max_samples, int(policy.max_fraction * num_samples))
            if not self._most:
                raise UserError(
                    f"on_error: max_fraction: {policy.max_fraction} of {num_samples} samples is "
                    f"not one; {1 / num_samples:.2g} or more would allow one"
                )
        self._found: dict[int, BadSample] = {}
        self._new: list[BadSample] = []

    def __len__(self) -> int:
        """How many different ones were met."""
        return len(self._found)

    def __iter__(self) -> Iterator[BadSample]:
        """Yields them by their number in the split."""
        return iter(sorted(self._found.values()))

    def add(self, bad: BadSample) -> None:
        """Notes a damaged sample, and warns the first time.

        Raises:
            UserError: There are more than the policy allows.
        """
        if bad.sample_id in self._found:
            return
        if len(self._found) >= self._most:
            others = (
                f" ({self._most} others of {self._num_samples} were replaced, and on_error allows "
                "no more)"
                if self._most
                else ""
            )
            raise UserError(f"{bad.where}: {bad.what}{others}")
        self._found[bad.sample_id] = bad
        self._new.append(bad)
        _logger.warning("%s: %s; another sample stands in for it", bad.where, bad.what)

    def take_new(self) -> list[BadSample]:
        """Returns those met since the last call; what a worker tells the process it works for."""
        new, self._new = self._new, []
        return new

    def merge(self, others: Iterable[BadSample]) -> None:
        """Adds what other processes met, without warning again.

        Raises:
            UserError: There are more than the policy allows.
        """
        for bad in others:
            if bad.sample_id not in self._found and len(self._found) >= self._most:
                raise UserError(
                    f"{bad.where}: {bad.what}: with it, more than {self._most} of "
                    f"{self._num_samples} samples are damaged, and on_error allows no more"
                )
            self._found.setdefault(bad.sample_id, bad)

    def state(self) -> list[dict[str, Any]]:
        """Returns them for a checkpoint, as plain values, in the order of their numbers."""
        return [bad._asdict() for bad in self]

    def load_state(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Adds those of a checkpoint.

        Raises:
            UserError: There are more than the policy allows.
        """
        self.merge(BadSample(**record) for record in state)
