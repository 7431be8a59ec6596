"""The config's reference as a Markdown table, for the README."""

from __future__ import annotations

from msam_scale.config.describe import allowed, property_of, shown
from msam_scale.config.keys import STAND_INS, all_keys, default_of


def markdown_table() -> str:
    """One row for each setting: section, key, type, default, meaning."""
    rows = ["| section | key | type | default | meaning |", "| --- | --- | --- | --- | --- |"]
    rows += [_row(key) for key in all_keys()]
    return "\n".join(rows) + "\n"


def _row(key: str) -> str:
    schema = property_of(key.split("."))
    assert schema is not None
    section, _, name = key.rpartition(".")
    default = "required" if key in STAND_INS else f"`{shown(default_of(key))}`"
    meaning = " ".join(schema["description"].split())
    cells = [f"`{section}`" if section else "", f"`{name}`", allowed(schema), default, meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
