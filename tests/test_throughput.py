"""The peak that utilisation is a part of: measured in no time, on slow devices too."""

from __future__ import annotations

import itertools

import pytest
import torch

from msam_scale.monitoring import throughput
from msam_scale.monitoring.throughput import peak_flops

_CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seconds", "size"),
    [(1.0, 128), (0.03125, 128), (0.0078125, 1024)],
    ids=["slow", "enough", "fast"],
)
def test_products_grow_until_one_takes_time(
    seconds: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which every product takes as long."""
    readings = itertools.count()
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: seconds * next(readings))
    assert peak_flops(_CPU, torch.float32) == pytest.approx(2 * size**3 / seconds)


def test_the_best_product_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = itertools.chain([5.0, 5.0, 5.0, 0.5, 5.0], itertools.repeat(5.0))
    readings = itertools.chain.from_iterable((0.0, step) for step in steps)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(readings))
    assert peak_flops(_CPU, torch.float32) == pytest.approx(2 * 128**3 / 0.5)
