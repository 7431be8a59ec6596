"""Faults put into the product on purpose: each has to be noticed by `make test`.

A test suite is worth what it notices. Every module of this package lists faults of one area of the
product; `python -m tests.planted_faults` puts them, one at a time, into a copy of the tree.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """One mistake that somebody could make.

    Attributes:
        name: a few words joined by hyphens, unique among all faults.
        file: of the product, relative to the root.
        old: text that stands in the file exactly once.
        new: what the fault makes of it.
        claim: what the project promises, and the fault breaks.
        tests: files or single tests that should notice it, the quickest first.
    """

    name: str
    file: str
    old: str
    new: str
    claim: str
    tests: tuple[str, ...]

    def plant(self, root: Path) -> str:
        """Puts the fault into the tree at `root`; returns the file's text as it was.

        Raises:
            ValueError: its place is not there, or not the only one. Who moves code moves its
                faults.
        """
        path = root / self.file
        text = path.read_text("utf-8") if path.is_file() else ""
        if (places := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its text stands {places} times in {self.file}")
        path.write_text(text.replace(self.old, self.new), "utf-8")
        return text

    def take_out(self, root: Path, text: str) -> None:
        """Undoes `plant`."""
        (root / self.file).write_text(text, "utf-8")


def all_faults() -> list[Fault]:
    """Those of every module, in the order of the modules' names."""
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name[0] != "_")
    return [
        fault for name in modules for fault in importlib.import_module(f"{__name__}.{name}").FAULTS
    ]
