"""Tables of configs that lie beside the tests, and how a line of a refusal is held to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from msam_scale.config import ConfigError


def table(name: str) -> dict[str, Any]:
    """The lists of a YAML file in this folder."""
    path = Path(__file__).parent / name
    content: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return content


def assert_refused(line: str, load: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """The call is refused with this one line, or with one that begins so and goes on at "…"."""
    with pytest.raises(ConfigError) as caught:
        load(*arguments, **named)
    assert len(caught.value.problems) == 1, str(caught.value)
    start = line.removesuffix("…")
    assert str(caught.value)[: len(start)] == start
    assert "\n" not in str(caught.value)
    assert line != start or str(caught.value) == line
