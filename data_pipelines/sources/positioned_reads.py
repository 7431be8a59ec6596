"""Reading by position from open files."""

import os


def read_at(descriptor: int, *, start: int, stop: int) -> bytes:
    """Returns the bytes start … stop - 1 of an open file, or fewer where it ends before.

    Never through the shared file position, so processes may share the descriptor.
    """
    content = os.pread(descriptor, stop - start, start)
    # One call gives at most 2 GiB, and over a network maybe less than asked.
    while len(content) < stop - start:
        more = os.pread(descriptor, stop - start - len(content), start + len(content))
        if not more:
            break
        content += more
    return content
