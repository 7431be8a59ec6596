"""How long-running work says how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Is called now and then, in the calling process, by work that takes long."""

    def __call__(self, what: str, *, done: int, total: int | None, unit: str) -> None:
        """Takes the state of the work.

        Args:
            what: The piece of work, such as "writing train"; a new one ends the one before.
            done: How many units are done.
            total: Of how many; None where that is not known.
            unit: What is counted, in the plural, such as "samples".
        """
        ...


def no_progress(what: str, *, done: int, total: int | None, unit: str) -> None:
    """Tells nobody."""
