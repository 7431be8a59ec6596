"""Exact moments of mini-batch and micro-batch means: the combinatorics behind E[…] in section 3.

Everything section 3 averages is a sum of products Z_{t₁} … Z_{t_r} of at most four matrices over
the samples of a mini-batch. Samples are exchangeable, so the expectation of one product depends
only on which of its positions hold the same sample: on a set partition of {1, …, r}. Instead of
drawing mini-batches, the functions here count these partitions, in exact fractions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import factorial, perm, prod

Partition = tuple[int, ...]
"""A set partition: the number of the block of every position, blocks numbered as they appear."""


@dataclass(frozen=True)
class BatchSampling:
    """How a mini-batch S and its micro-batches S_1, …, S_m are drawn.

    The paper calls S "a randomly chosen mini-batch" out of [n] and its m micro-batches disjoint and
    of equal size. It does not say how either is drawn; here S is B different examples, every
    choice equally likely, and so is every split of S into m parts of B / m. With `replacement` S is
    B independent draws, and one example can be in it more than once.

    Args:
        num_examples: n, examples of the training set.
        batch_size: B.
        micro_batches: m; 1 is SAM.
        replacement: draw with replacement.

    Raises:
        ValueError: a value is below 1, m does not divide B, or B is over n without replacement.
    """

    num_examples: int
    batch_size: int
    micro_batches: int = 1
    replacement: bool = False

    def __post_init__(self) -> None:
        for name in ("num_examples", "batch_size", "micro_batches"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.batch_size % self.micro_batches:
            divisors = [m for m in range(1, self.batch_size + 1) if self.batch_size % m == 0]
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into micro_batches "
                f"{self.micro_batches} of equal size; what divides it: {divisors}"
            )
        if not self.replacement and self.batch_size > self.num_examples:
            raise ValueError(
                f"batch_size {self.batch_size} is more than the {self.num_examples} examples; "
                f"take at most {self.num_examples}, or replacement=True"
            )

    @property
    def micro_batch_size(self) -> int:
        """B / m, samples of one micro-batch."""
        return self.batch_size // self.micro_batches

    @property
    def batch_variance(self) -> Fraction:
        """V(X_S) for matrices X_i of mean square 1: (n − B) / (B (n − 1)), or 1 / B."""
        return self._variance_of_mean(self.batch_size)

    @property
    def micro_batch_variance(self) -> Fraction:
        """V(X_{S_j}): as `batch_variance`, for a mean over B / m samples."""
        return self._variance_of_mean(self.micro_batch_size)

    def _variance_of_mean(self, num_samples: int) -> Fraction:
        if self.replacement:
            return Fraction(1, num_samples)
        if num_samples == self.num_examples:
            return Fraction(0)
        return Fraction(self.num_examples - num_samples, num_samples * (self.num_examples - 1))

    def weight(self, sums: Partition, *, factors: Partition) -> Fraction:
        """The coefficient of one free sum in an expectation over mini-batch and micro-batches.

        The expectation is that of a product of two averages over micro-batches,
        E[(1/m Σ_j Π_{t: factors[t]=0} Z_{t,S_j}) (1/m Σ_k Π_{t: factors[t]=1} Z_{t,S_k})], where
        Z_{t,S_j} is the mean of Z_{t,i} over the samples i of S_j. It equals
        Σ_sums weight(sums) · Σ_{i_1, i_2, …} Π_t Z_{t,i_{sums[t]}}, whose inner sum lets every
        index run freely over the n examples.

        Args:
            sums: which positions share an index, such as (0, 1, 0, 1) for Σ_{i,k} Z_i Z_k Z_i Z_k.
            factors: for every position, which of the two averages it belongs to.
        """
        if self.replacement:
            num_indices = max(sums) + 1
            return self._share_of_tuples(sums, factors) * Fraction(
                1, self.num_examples**num_indices
            )
        total = Fraction(0)
        for finer in set_partitions(len(sums)):
            share = self._share_of_tuples(finer, factors)
            if share and _refines(finer, sums):
                # Different positions of S hold different examples: a sum over different indices is
                # turned into free sums by Möbius inversion on the lattice of set partitions.
                total += share * _moebius(finer, sums) / perm(self.num_examples, max(finer) + 1)
        return total

    def _share_of_tuples(self, partition: Partition, factors: Partition) -> Fraction:
        """The share of position tuples whose equal positions are exactly those of `partition`."""
        size, m = self.micro_batch_size, self.micro_batches
        num_tuples = m * perm(size, max(partition) + 1)
        blocks = [{b for b, f in zip(partition, factors, strict=True) if f == k} for k in (0, 1)]
        if not blocks[0] & blocks[1]:  # no sample is in two micro-batches
            num_tuples += m * (m - 1) * prod(perm(size, len(block)) for block in blocks)
        return Fraction(num_tuples, m**2 * size ** len(partition))


def set_partitions(size: int) -> Iterator[Partition]:
    """All set partitions of `size` positions (1, 2, 5, 15, …), each once."""
    partitions: list[Partition] = [()]
    for _ in range(size):
        partitions = [(*p, block) for p in partitions for block in range(max(p, default=-1) + 2)]
    yield from partitions


def _refines(finer: Partition, coarser: Partition) -> bool:
    return len(set(zip(finer, coarser, strict=True))) == len(set(finer))


def _moebius(finer: Partition, coarser: Partition) -> int:
    merged = [0] * (max(coarser) + 1)
    for _, block in set(zip(finer, coarser, strict=True)):
        merged[block] += 1
    return prod((-1) ** (count - 1) * factorial(count - 1) for count in merged)
