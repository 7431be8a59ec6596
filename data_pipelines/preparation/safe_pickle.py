"""Reads pickles of plain values and of uint8 arrays, and runs nothing that they name.

A pickle is a program: it may call any function it can import. Here it can import three names, which
are those of NumPy's array format, and it gets this module's stand-ins for them: they hold what they
are given and check it; NumPy's own unpickling code does not run either.
"""

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_DIMENSIONS = 4


def load_plain_pickle(content: bytes) -> Any:
    """Reads a pickle of dicts, lists, tuples, numbers, strings and uint8 arrays.

    Strings of Python 2 come out as bytes, as with `pickle.loads(..., encoding="bytes")`.

    Raises:
        ValueError: It holds anything else, or is damaged or cut short.
    """
    try:
        _check_memo(content)
        return _plain(_PlainUnpickler(io.BytesIO(content), encoding="bytes").load())
    except _RefusedError:
        raise
    # A damaged pickle makes the machine stumble in as many ways as it has instructions.
    except Exception as error:
        raise ValueError(f"damaged pickle: {type(error).__name__}: {error}") from error


class _RefusedError(ValueError):
    """The pickle is no damaged one, but holds what is not expected."""


class _DtypeState:
    """Stands in for `numpy.dtype`."""

    __slots__ = ("kind",)

    def __init__(self, kind: object, *_: object) -> None:
        if kind not in (b"u1", "u1"):
            raise _RefusedError(f"an array of type {kind!r}, only bytes (u1) are expected")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which bytes do not have."""


class _ArrayClass:
    """Stands in for `numpy.ndarray`, which is only ever named."""

    __slots__ = ()


class _ArrayState:
    """Stands in for the array that `numpy.core.multiarray._reconstruct` makes."""

    __slots__ = ("array",)

    array: NDArray[np.uint8]

    def __init__(self, kind: object, *_: object) -> None:
        if kind is not _ArrayClass:
            raise _RefusedError("an array of another class than numpy.ndarray")

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _DtypeState(), int() as is_fortran, bytes() as raw):
                pass
            case _:
                raise _RefusedError("an array whose state is not NumPy's")
        sizes_fit = all(type(size) is int and size >= 0 for size in shape)
        if not sizes_fit or len(shape) > _MAX_DIMENSIONS or math.prod(shape) != len(raw):
            raise _RefusedError(f"an array of shape {shape} with {len(raw)} bytes")
        flat = np.frombuffer(raw, np.uint8)
        self.array = flat.reshape(shape, order="F" if is_fortran else "C")


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _ArrayState,
    ("numpy._core.multiarray", "_reconstruct"): _ArrayState,
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _DtypeState,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _STAND_INS:
            raise _RefusedError(f"names {module}.{name}, which is no plain value: refused")
        return _STAND_INS[module, name]


def _check_memo(content: bytes) -> None:
    """Refuses places in the memo that no pickle of this length needs: it grows to hold them."""
    for instruction, argument, _ in pickletools.genops(content):
        is_put = instruction.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_put and (argument is None or argument > len(content)):
            raise _RefusedError(f"asks for place {argument} of the memo: refused")


def _plain(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Puts the arrays in the place of their stand-ins.

    Args:
        value: What was read; kept by the caller, so that the ids of its parts stay theirs.
        done: The result by the id of each container: a part that is named in many places stays one,
            else a few bytes could ask for copies without end.
    """
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _ArrayState):
        return value.array
    if type(value) is dict:
        done[id(value)] = {_plain(key, done): _plain(each, done) for key, each in value.items()}
        return done[id(value)]
    if type(value) in (list, tuple):
        done[id(value)] = type(value)(_plain(each, done) for each in value)
        return done[id(value)]
    if type(value) in (int, float, bool, bytes, str, type(None)):
        return value
    raise _RefusedError(f"holds a {type(value).__name__}, which is no plain value")
