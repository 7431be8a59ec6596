"""Which samples of a mini-batch each rank works on: pure arithmetic, no process group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from math import isqrt

from data_pipelines.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """The layout of one mini-batch of B samples in m micro-batches on W ranks.

    The world is cut into N perturbation groups of G_p consecutive ranks. Group `g` works through
    the micro-batches `g*k … g*k+k-1`, one after the other, and rank `p` of a group takes the
    `p`-th equal slice of each. G_p is the smallest multiple of G_s that divides W and makes
    N = W / G_p divide m, so a micro-batch is spread over no more ranks than it has to be. With
    replicated parameters m = W is one perturbation a rank (Foret et al.'s mSAM), m = 1 is SAM.

    Args:
        batch_size: B, samples of one optimizer step over all ranks.
        micro_batches: m of equation (6), perturbations of one optimizer step.
        world_size: W, ranks.
        shard_group_size: G_s, ranks that together hold one copy of the parameters.

    Raises:
        UserError: a value is below 1, G_s does not divide W, or B cannot be split evenly; the
            message names the nearest values that can.
    """

    batch_size: int
    micro_batches: int
    world_size: int = 1
    shard_group_size: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batches", "world_size", "shard_group_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.world_size % self.shard_group_size:
            fitting = _listed(divisors(self.world_size))
            raise UserError(
                f"{self.world_size} ranks cannot be cut into shard groups of "
                f"{self.shard_group_size}; sizes that divide them: {fitting}"
            )
        if self.batch_size % (self.micro_batches * self.group_size):
            raise UserError(self._refusal())

    @cached_property
    def group_size(self) -> int:
        """G_p: ranks that work on one micro-batch together and share its perturbation."""
        return _group_size(self.micro_batches, self.world_size, self.shard_group_size)

    @property
    def groups(self) -> int:
        """N: perturbation groups."""
        return self.world_size // self.group_size

    @property
    def sequential(self) -> int:
        """k: micro-batches that a group works through one after the other."""
        return self.micro_batches // self.groups

    @property
    def micro_batch_size(self) -> int:
        """Samples of one micro-batch: B / m."""
        return self.batch_size // self.micro_batches

    @property
    def slice_size(self) -> int:
        """Samples of one micro-batch that one rank works on: B / (m · G_p)."""
        return self.micro_batch_size // self.group_size

    @property
    def samples_per_rank(self) -> int:
        """Samples of one optimizer step that one rank works on: B / W."""
        return self.batch_size // self.world_size

    def micro_batch_of(self, rank: int, turn: int) -> int:
        """The micro-batch j < m that `rank` works on in its `turn` < k."""
        return rank // self.group_size * self.sequential + turn

    def slice_positions(self, rank: int, turn: int) -> range:
        """Positions in the mini-batch of the slice that `rank` works on in its `turn` < k."""
        start = self.micro_batch_of(rank, turn) * self.micro_batch_size
        start += rank % self.group_size * self.slice_size
        return range(start, start + self.slice_size)

    def positions(self, rank: int) -> list[int]:
        """Positions in the mini-batch that `rank` supplies, in the order `train_step` expects.

        Raises:
            UserError: there is no such rank.
        """
        if not 0 <= rank < self.world_size:
            raise UserError(f"rank {rank} is not one of 0 … {self.world_size - 1}")
        turns = range(self.sequential)
        return [position for turn in turns for position in self.slice_positions(rank, turn)]

    def _refusal(self) -> str:
        size, count, world = self.batch_size, self.micro_batches, self.world_size
        unit = count * self.group_size
        below, above = size // unit * unit, (size // unit + 1) * unit
        sizes = [value for value in (below, above) if value > 0]
        nearest = self._nearest_micro_batches()
        ranks = "1 rank" if world == 1 else f"{world} ranks"
        spread = f" each spread over {self.group_size} ranks" if self.group_size > 1 else ""
        with_these = f"micro-batches that {size} can be cut into on {ranks}: {_listed(nearest)}"
        if not nearest:
            with_these = f"no number of micro-batches cuts {size} samples evenly on {ranks}"
        return (
            f"a mini-batch of {size} cannot be cut evenly into {count} micro-batches{spread}; "
            f"{with_these}; sizes that {count} micro-batches can use: {_listed(sizes)}"
        )

    def _nearest_micro_batches(self) -> list[int]:
        if self.batch_size % self.world_size:
            return []  # every rank gets B / W samples, whatever m is
        start = min(self.micro_batches, self.batch_size)
        distances = (d * sign for d in range(self.batch_size) for sign in (-1, 1)[: d + 1])
        counts = (start + distance for distance in distances)
        fitting = (m for m in counts if 1 <= m <= self.batch_size and self._fits(m))
        return sorted(islice(fitting, 4))

    def _fits(self, micro_batches: int) -> bool:
        group_size = _group_size(micro_batches, self.world_size, self.shard_group_size)
        return self.batch_size % (micro_batches * group_size) == 0


def _group_size(micro_batches: int, world_size: int, shard_group_size: int) -> int:
    for size in divisors(world_size):
        if size % shard_group_size == 0 and micro_batches % (world_size // size) == 0:
            return size
    raise AssertionError("the whole world is always a group that works: N = 1 divides every m")


@cache
def divisors(number: int) -> list[int]:
    """All divisors of a positive number, in order."""
    small = [size for size in range(1, isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))
