"""64-bit mixing: the one source of everything random here.

Written out instead of taken from a library so that an order or an augmentation is the same with
every version of NumPy and Python: changing these functions changes every published run.
"""

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError

_MASK = (1 << 64) - 1
# The increment and the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
_INCREMENT = 0x9E3779B97F4A7C15
_INCREMENT_WORD = np.uint64(_INCREMENT)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Maps 64-bit words one to one to words that look random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MULTIPLIER_1)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MULTIPLIER_2)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def derive_key(purpose: str, *words: int) -> int:
    """Returns a 64-bit key that depends on every one of `words` and on what it is for.

    Args:
        purpose: At most eight ASCII characters; keys of different purposes are unrelated.
        words: Integers in [0, 2**64).
    """
    assert 0 < len(purpose) <= 8, purpose
    key = 0
    for word in (int.from_bytes(purpose.encode("ascii"), "little"), *words):
        assert 0 <= word <= _MASK, word
        key = _mix((key ^ word) + _INCREMENT & _MASK)
    return key


def derive_keys(purpose: str, *words: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns `derive_key` of many words at once.

    Args:
        purpose: As for `derive_key`.
        words: Integers or arrays of them, whose shapes are broadcast.
    """
    keys = np.zeros((), np.uint64)
    for word in (int.from_bytes(purpose.encode("ascii"), "little"), *words):
        # One dimension at least: NumPy warns of a wrapping sum where both sides are scalars.
        keys = mix_array(np.atleast_1d(keys ^ np.asarray(word, np.uint64)) + _INCREMENT_WORD)
    return keys


def checked_seed(seed: int) -> int:
    """Returns `seed` if it can be one.

    Raises:
        UserError: It is not in [0, 2**63).
    """
    if not 0 <= seed < 1 << 63:
        raise UserError(f"seed: {seed} is not in 0 … 2**63 - 1")
    return seed


def _mix(value: int) -> int:
    value = (value ^ (value >> 30)) * _MULTIPLIER_1 & _MASK
    value = (value ^ (value >> 27)) * _MULTIPLIER_2 & _MASK
    return value ^ (value >> 31)
