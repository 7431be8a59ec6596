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
