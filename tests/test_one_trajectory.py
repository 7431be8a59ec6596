"""One trajectory: every strategy on every number of ranks follows the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from engine_runs import ADAMW, SGD, Outcome, Run, outcome_of, relative_difference, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from references import reference_for
from report import add_row

# DeepSpeed's float32 may round elsewhere than a single process does, and no worse than so.
_TIMES_SINGLE_PROCESS = 5.0
_TITLE = "One trajectory: relative error of the update after n steps, against the float64 reference"


@dataclass(frozen=True)
class Column:
    """Settings of the algorithm and of the chunks."""

    model: str
    micro_batches: int
    chunk: int | None
    optimizer: str
    clip_norm: float | None
    norm_samples: int | None = None
    steps: int = 10

    def run(self, precision: str, sharding: dict[str, Any], *, same_modules: bool) -> Run:
        """Its steps."""
        config = settings(
            micro_batches=self.micro_batches,
            chunk=self.chunk,
            optimizer=SGD if self.optimizer == "sgd" else ADAMW,
            clip_norm=self.clip_norm,
            norm_samples=self.norm_samples,
            precision=precision,
            **sharding,
        )
        model = self.model
        if model == "odd" and same_modules:
            model = "odd, all of it used"
        return Run(config, model=model, steps=self.steps, dict_batch=model == "bert")

    def error(self, outcome: Outcome) -> float:
        """The distance from the reference."""
        expected = reference_for(
            self.model,
            self.micro_batches,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
            norm_samples=self.norm_samples,
            steps=self.steps,
        )
        return relative_difference(outcome.state, expected=expected.state, start=expected.start)

    def __str__(self) -> str:
        chunk = "whole" if self.chunk is None else f"chunk {self.chunk}"
        clip = "" if self.clip_norm is None else " clip"
        algorithm = f"m={self.micro_batches} {chunk} {self.optimizer}{clip}"
        return f"{self.model} {algorithm} n={self.steps}"


# Ten steps where they are cheap; what the others are for shows after a few.
COLUMNS = (
    Column("odd", 4, None, "sgd", None, steps=4),
    Column("odd", 8, 3, "sgd", 0.3),
    Column("odd", 1, 5, "adamw", None, steps=4),
    Column("odd", 2, None, "adamw", 0.3),
    Column("wide_resnet", 4, 2, "sgd", None, norm_samples=2, steps=3),
    Column("bert", 4, None, "sgd", None, steps=4),
    Column("dropout_vit", 4, 3, "adamw", None, steps=3),
)
# Two ranks of the slowest ones are in other tests.
CELLS = [
    (row, size)
    for row, layout in LAYOUTS.items()
    for size in layout.sizes
    if size != 2 or row in ("replicated", "ZeRO-1", "ZeRO-2")
]


@cache
def _single_process_float32(column: Column) -> float:
    run = column.run("float32", {"strategy": "replicated"}, same_modules=False)
    return column.error(outcome_of(run))


@pytest.mark.parametrize(("row", "size"), CELLS, ids=[f"{row}, W={size}" for row, size in CELLS])
def test_every_layout_follows_the_reference(row: str, size: int, on_ranks: OnRanks) -> None:
    if row == "replicated" and size == 1:
        add_row(_TITLE, "", "W", *map(str, COLUMNS))
    layout = LAYOUTS[row]
    runs = [
        column.run(layout.precision, layout.sharding, same_modules=layout.same_modules)
        for column in COLUMNS
    ]
    by_rank = on_ranks(size, _outcomes, runs)
    errors = [column.error(outcome) for column, outcome in zip(COLUMNS, by_rank[0], strict=True)]
    add_row(_TITLE, row, str(size), *(f"{error:.1e}" for error in errors))
    for column, error in zip(COLUMNS, errors, strict=True):
        bound = 1e-9
        if layout.precision == "float32":
            bound = _TIMES_SINGLE_PROCESS * _single_process_float32(column)
        assert error < bound, f"{column}: {error:.1e}, bound {bound:.1e}"
    for outcomes in by_rank[1:]:
        for outcome, first in zip(outcomes, by_rank[0], strict=True):
            assert all(outcome.state[name].equal(first.state[name]) for name in first.state)
            assert outcome.losses == first.losses


def _outcomes(runs: list[Run]) -> list[Outcome]:
    return [outcome_of(run) for run in runs]
