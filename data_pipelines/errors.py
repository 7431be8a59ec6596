"""The one error class for what the user can mend, and lists in its messages."""

from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: a bad setting, missing or damaged data.

    The message names what is wrong (file, key, value) and what would work. Command lines print it
    as it is, without a traceback, and exit with code 2. Our own bugs are `assert`s and keep theirs.
    """


def a_few(things: Iterable[object], *, most: int = 5) -> str:
    """Returns the first of them for a message, and how many there are where those are not all."""
    names = list(map(str, things))
    rest = f", … ({len(names)} in all)" if len(names) > most else ""
    return f"{', '.join(names[:most])}{rest}"
