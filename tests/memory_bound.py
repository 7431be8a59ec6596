"""A bound on memory, around what must be refused before it is taken."""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOST_BYTES = 32 << 20
# Of address space, over what the process has: without it a hole would take the machine's memory.
_MOST_MAPPED = 4 << 30


@contextmanager
def bounded_pages(*, most_bytes: int) -> Iterator[None]:
    """Fails when the process's memory grows by more meanwhile; it costs no time."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = _kilobytes("VmRSS")
    yield
    grown = (_kilobytes("VmHWM") - before) << 10
    assert grown < most_bytes, f"{grown >> 20} MiB were taken"


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@contextmanager
def bounded(*, most_bytes: int = _MOST_BYTES) -> Iterator[None]:
    """Fails when more is taken meanwhile, of Python's memory or of the machine's."""
    mapped = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MOST_MAPPED, hard))
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak < most_bytes, f"{peak >> 20} MiB were taken"
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
