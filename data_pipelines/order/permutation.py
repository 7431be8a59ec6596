"""Pseudo-random permutations that are computed place by place."""

import math

import numpy as np
from numpy.typing import NDArray

from data_pipelines.order.mixing import derive_keys, mix_array

# A Feistel network is a good permutation from four rounds on when the halves are large. Small data
# sets need more: with 12, all 120 orders of five samples are equally frequent (tested).
_NUM_ROUNDS = 12


class Permutation:
    """A permutation of 0 … size - 1, drawn by `key`; any place of it costs the same time.

    A Feistel network: a number below `rows * columns`, a near-square rectangle that just holds
    `size`, is a pair (row, column), and each round shifts one half of the pair, cyclically, by a
    keyed hash of the other; that can be undone, so it is one to one. A result that falls outside
    0 … size - 1 goes through the network again until it falls inside ("cycle walking"), which keeps
    it one to one and is rare: the rectangle is larger than `size` by less than one row.
    """

    def __init__(self, size: int, *, key: int) -> None:
        """Draws a permutation.

        Args:
            size: How many numbers it permutes, in [1, 2**62).
            key: Any integer in [0, 2**64); different keys give unrelated permutations.
        """
        assert 1 <= size < 1 << 62, size
        columns = math.isqrt(size - 1) + 1
        self._size = np.array([size], np.uint64)
        self._columns = np.array([columns], np.uint64)
        self._rows = np.array([-(-size // columns)], np.uint64)
        self._round_keys = _round_keys(np.array([key], np.uint64))

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns which number stands at each of `places`.

        Args:
            places: Any shape, each in 0 … size - 1.

        Returns:
            The same shape.
        """
        numbers = _walk(
            places.astype(np.uint64).ravel(),
            sizes=self._size,
            rows=self._rows,
            columns=self._columns,
            round_keys=self._round_keys,
        )
        return numbers.astype(np.int64).reshape(places.shape)


def permute_each(
    places: NDArray[np.int64], *, sizes: NDArray[np.int64], keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Returns `Permutation(size, key=key)(place)` for many permutations at once.

    Args:
        places: A place in each permutation, (places,).
        sizes: The size of each, in [1, 2**50), likewise.
        keys: The key of each, likewise.
    """
    assert sizes.size == 0 or 1 <= sizes.min() <= sizes.max() < 1 << 50, sizes
    # Below 2**50 the square root of a float64 is off by less than one, never by more.
    columns = np.sqrt(sizes - 1).astype(np.int64)
    columns -= columns * columns > sizes - 1
    columns += (columns + 1) * (columns + 1) <= sizes - 1
    columns += 1
    numbers = _walk(
        places.astype(np.uint64),
        sizes=sizes.astype(np.uint64),
        rows=(-(-sizes // columns)).astype(np.uint64),
        columns=columns.astype(np.uint64),
        round_keys=_round_keys(keys),
    )
    return numbers.astype(np.int64)


def _round_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the keys of the rounds, (rounds, keys)."""
    return np.stack([derive_keys("feistel", keys, number) for number in range(_NUM_ROUNDS)])


def _walk(
    numbers: NDArray[np.uint64],
    *,
    sizes: NDArray[np.uint64],
    rows: NDArray[np.uint64],
    columns: NDArray[np.uint64],
    round_keys: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """Sends numbers through their networks until all are inside.

    Args:
        numbers: (numbers,).
        sizes: (numbers,), or (1,) when all have the same permutation.
        rows: Likewise.
        columns: Likewise.
        round_keys: (rounds, numbers) or (rounds, 1).
    """
    numbers = _network(numbers, rows=rows, columns=columns, round_keys=round_keys)
    outside = np.flatnonzero(numbers >= sizes)
    is_shared = sizes.size == 1
    while outside.size:
        of = np.zeros(1, np.int64) if is_shared else outside
        numbers[outside] = _network(
            numbers[outside], rows=rows[of], columns=columns[of], round_keys=round_keys[:, of]
        )
        outside = outside[numbers[outside] >= (sizes if is_shared else sizes[outside])]
    return numbers


def _network(
    numbers: NDArray[np.uint64],
    *,
    rows: NDArray[np.uint64],
    columns: NDArray[np.uint64],
    round_keys: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    row, column = np.divmod(numbers, columns)
    for number, keys in enumerate(round_keys):
        if number % 2:
            column = _shifted(column, by=row, keys=keys, modulus=columns)
        else:
            row = _shifted(row, by=column, keys=keys, modulus=rows)
    joined: NDArray[np.uint64] = row * columns + column
    return joined


def _shifted(
    half: NDArray[np.uint64],
    *,
    by: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    modulus: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    # Halving the hash leaves room for the sum: a wrap at 2**64 would break one-to-one.
    shift = mix_array(by ^ keys) >> np.uint64(1)
    shifted: NDArray[np.uint64] = (half + shift) % modulus
    return shifted
