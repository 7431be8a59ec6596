"""The long parts are those that docs/development.md lists, and each has something to run."""

from __future__ import annotations

from tests.parts import PARTS
from tests.planted_faults import ROOT


def test_the_docs_list_the_parts() -> None:
    text = (ROOT / "docs/development.md").read_text("utf-8")
    rows = [f"| `{name}` | {part.description} |" for name, part in PARTS.items()]
    assert [line for line in text.splitlines() if line in rows] == rows


def test_each_part_has_something_to_run() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    for name, part in PARTS.items():
        marker = f'mark.part("{name}")'
        assert part.steps or any(marker in source for source in sources), name
