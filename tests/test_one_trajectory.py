"""One trajectory: every strategy on every number of ranks follows equation (6)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from engine_runs import ADAMW, SGD, Outcome, Run, outcomes_of, relative_difference, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from reference import Reference
from references import reference_for
from report import add_row

pytestmark = pytest.mark.layouts

# float32 may round elsewhere than it does in a single process, and no worse than so.
_TIMES_SINGLE_PROCESS, _FLOOR = 5.0, 1e-5
_TITLE = "One trajectory: relative error of the update after n steps, against the float64 reference"
# Vanilla, SAM, mSAM and vanilla again, one step each.
_PHASES = [
    {"until": 0.25, "algorithm": "vanilla"},
    {"until": 0.5, "algorithm": "sam"},
    {"until": 0.75, "algorithm": "msam"},
]
_ALGORITHMS = ("vanilla", "sam", "msam", "vanilla")


@dataclass(frozen=True)
class Column:
    """Settings of the algorithm and of the chunks."""

    model: str
    micro_batches: int
    chunk: int | None
    optimizer: str = "sgd"
    clip_norm: float | None = None
    norm_samples: int | None = None
    rho: float | tuple[float, ...] | None = 0.1
    ascent: str = "sam"
    has_phases: bool = False
    steps: int = 3

    def run(self, precision: str, sharding: dict[str, Any], *, same_modules: bool) -> Run:
        """Its steps."""
        config = settings(
            algorithm="vanilla" if self.rho is None else "msam",
            micro_batches=self.micro_batches,
            chunk=self.chunk,
            optimizer=SGD if self.optimizer == "sgd" else ADAMW,
            clip_norm=self.clip_norm,
            norm_samples=self.norm_samples,
            precision=precision,
            **sharding,
        )
        if self.rho is not None:
            rho = list(self.rho) if isinstance(self.rho, tuple) else self.rho
            config["objective"] |= {"rho": rho, "ascent": self.ascent}
        if self.has_phases:
            config["objective"] |= {"algorithm": "vanilla", "phases": _PHASES}
            config["training"] = {"steps": self.steps}
        model = self._model(precision)
        if model == "odd" and same_modules:
            model = "odd, all of it used"
        return Run(config, model=model, steps=self.steps, dict_batch=model == "bert")

    def reference(self, precision: str) -> Reference:
        """What the layouts of this precision are compared with; itself in float64."""
        return reference_for(
            self._model(precision),
            self.micro_batches,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
            norm_samples=self.norm_samples,
            steps=self.steps,
            rho=self.rho,
            normalizes=self.ascent == "sam",
            algorithms=_ALGORITHMS if self.has_phases else None,
        )

    def _model(self, precision: str) -> str:
        # A net with ReLU and few samples a batch norm amplifies float32's rounding without bound.
        is_rough = precision == "float32" and self.model == "wide_resnet"
        return "smooth_norms" if is_rough else self.model

    def __str__(self) -> str:
        chunk = "whole" if self.chunk is None else f"chunk {self.chunk}"
        clip = "" if self.clip_norm is None else " clip"
        kind = " phases" if self.has_phases else "" if self.ascent == "sam" else f" {self.ascent}"
        kind = " vanilla" if self.rho is None else kind
        algorithm = f"m={self.micro_batches} {chunk} {self.optimizer}{clip}{kind}"
        return f"{self.model} {algorithm} n={self.steps}"


# Ten steps once; what the others are for shows after three.
COLUMNS = (
    Column("odd", 8, 3, clip_norm=0.5, steps=10),
    Column("odd", 4, None, "adamw", rho=(0.3, 0.0, 0.05, 0.7)),
    Column("odd", 1, 5, "adamw", clip_norm=0.5),
    Column("odd", 2, None, rho=0.3, ascent="unnormalized"),
    Column("wide_resnet", 4, 2, norm_samples=2),
    Column("bert", 4, None),
    Column("dropout_vit", 4, 3, "adamw"),
    Column("odd", 4, 4, "adamw", has_phases=True, steps=4),
)
# With replicated parameters, where a run is cheap.
MORE_COLUMNS = (
    Column("odd", 16, 1, "adamw", clip_norm=0.5),
    Column("odd", 4, 3, rho=None),
    Column("wide_resnet", 1, None, norm_samples=4),
    Column("wide_resnet", 2, 8, norm_samples=8),
    Column("wide_resnet", 4, None),
    Column("dropout_vit", 1, None),
    Column("dropout_vit", 16, 1),
)


@dataclass(frozen=True)
class Cell:
    """Some columns of a layout on a number of ranks."""

    row: str
    size: int
    columns: tuple[Column, ...]

    def __str__(self) -> str:
        return f"{self.row}, W={self.size}"


def _some_cells() -> list[Cell]:
    """Each column once in a row, on one number of ranks after the other.

    Stages 1 and 2 share a column, as they share their passes, and of the dearest layout those are
    left whose micro-batches are spread in different ways.
    """
    numbers = dict.fromkeys(LAYOUTS, tuple(range(len(COLUMNS))))
    numbers |= {"ZeRO-1": (0, 2, 4, 6), "ZeRO-2": (1, 3, 5, 7), "hybrid ZeRO-3 2x2": (1, 2, 7)}
    cells = []
    for place, (row, layout) in enumerate(LAYOUTS.items()):
        if row == "replicated":
            cells += [Cell(row, size, COLUMNS + MORE_COLUMNS) for size in layout.sizes]
            continue
        by_size: dict[int, list[Column]] = {size: [] for size in layout.sizes}
        for turn, number in enumerate(numbers[row]):
            by_size[layout.sizes[(turn + place) % len(layout.sizes)]].append(COLUMNS[number])
        cells += [Cell(row, size, tuple(columns)) for size, columns in by_size.items() if columns]
    return cells


_ALL_CELLS = [Cell(row, size, COLUMNS) for row, layout in LAYOUTS.items() for size in layout.sizes]


@cache
def _single_process_float32(column: Column) -> float:
    run = column.run("float32", {"strategy": "replicated"}, same_modules=False)
    return _error(outcomes_of([run])[0], column.reference("float32"))


def _error(outcome: Outcome, reference: Reference) -> float:
    return relative_difference(outcome.state, expected=reference.state, start=reference.start)


def _check(cell: Cell, on_ranks: OnRanks, *, title: str) -> None:
    layout, columns = LAYOUTS[cell.row], cell.columns
    runs = [
        column.run(layout.precision, layout.sharding, same_modules=layout.same_modules)
        for column in columns
    ]
    by_rank = on_ranks(cell.size, outcomes_of, runs)
    errors = {
        column: _error(outcome, column.reference(layout.precision))
        for column, outcome in zip(columns, by_rank[0], strict=True)
    }
    if (cell.row, cell.size) == ("replicated", 1):
        add_row(title, "", "W", *map(str, COLUMNS))
    cells = [f"{errors[column]:.1e}" if column in errors else "" for column in COLUMNS]
    add_row(title, cell.row, str(cell.size), *cells)
    for column, outcome in zip(columns, by_rank[0], strict=True):
        bound = 1e-9
        if layout.precision == "float32":
            bound = max(_FLOOR, _TIMES_SINGLE_PROCESS * _single_process_float32(column))
        error, expected = errors[column], column.reference(layout.precision)
        assert error < bound, f"{column}: {error:.1e}, bound {bound:.1e}"
        _check_figures(outcome, expected, tolerance=10 * bound)
    for outcomes in by_rank[1:]:
        for outcome, first in zip(outcomes, by_rank[0], strict=True):
            assert all(outcome.state[name].equal(first.state[name]) for name in first.state)
            assert outcome.losses == first.losses


def _check_figures(outcome: Outcome, expected: Reference, *, tolerance: float) -> None:
    for reported, right in (
        (outcome.losses, expected.losses),
        (outcome.gradient_norms, expected.gradient_norms),
        (outcome.ascent_norms, expected.ascent_norms),
    ):
        torch.testing.assert_close(reported, right, rtol=tolerance, atol=0)
    # Running statistics are small beside the weights, and would hide among them.
    if any("running" in name for name in expected.state):
        running = relative_difference(
            outcome.state,
            expected=expected.state,
            start=expected.start,
            among=lambda name: "running" in name,
        )
        assert running < tolerance


@pytest.mark.parametrize("cell", _some_cells(), ids=str)
def test_every_layout_follows_the_reference(cell: Cell, on_ranks: OnRanks) -> None:
    _check(cell, on_ranks, title=_TITLE)


@pytest.mark.part("trajectories")
@pytest.mark.parametrize("cell", _ALL_CELLS, ids=str)
def test_every_layout_follows_the_reference_in_every_column(cell: Cell, on_ranks: OnRanks) -> None:
    _check(cell, on_ranks, title=f"{_TITLE}, in full")


def test_the_reference_tells_settings_apart() -> None:
    """What passes above passes for one m, radius, rule, clipping and order of phases only."""
    exact = reference_for("odd", 4, optimizer="adamw", steps=4)
    others = [
        reference_for("odd", 2, optimizer="adamw", steps=4),
        reference_for("odd", 4, optimizer="adamw", steps=4, rho=None),
        reference_for("odd", 4, optimizer="adamw", steps=4, rho=(0.1, 0.1, 0.1, 0.2)),
        reference_for("odd", 4, optimizer="adamw", steps=4, normalizes=False),
        reference_for("odd", 4, optimizer="adamw", steps=4, algorithms=_ALGORITHMS),
    ]
    errors = [
        relative_difference(other.state, expected=exact.state, start=exact.start)
        for other in others
    ]
    assert min(errors) > 1e-3
    clipped = reference_for("odd", 8, clip_norm=0.5)
    assert min(clipped.gradient_norms) < 0.5 < max(clipped.gradient_norms), "of both kinds"
