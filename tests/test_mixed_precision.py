"""bfloat16 and float16 under every strategy, against a simulation with float32 masters."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import Run, engine_for, outcome_of, own_part, relative_difference, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from reference import Reference, reference_run
from references import reference_for
from report import add_row

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_TITLE = "Mixed precision: relative error of the update after 10 steps, against float64"
# DeepSpeed has no float16 on a CPU.
CELLS = [
    (precision, row, size)
    for precision in _DTYPES
    for row, layout in LAYOUTS.items()
    for size in layout.sizes
    if not (precision == "float16" and "ZeRO-3" in row) and size != 1
]


@cache
def _simulated(precision: str) -> Reference:
    """The reference in float32, whose matrix products torch rounds to the narrow type."""
    model = build_model("odd")
    forward = model.forward

    def narrow(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=_DTYPES[precision]):
            return forward(images).float()  # type: ignore[no-any-return]

    model.forward = narrow  # type: ignore[method-assign]
    return reference_run(
        model,
        mini_batch=lambda step: mini_batch(step, dtype=torch.float32),
        steps=10,
        micro_batches=4,
        rho=0.1,
        build_optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=0.05, momentum=0.9, weight_decay=0.01
        ),
        seed=7,
    )


@pytest.mark.parametrize(
    ("precision", "row", "size"), CELLS, ids=[f"{p}, {row}, W={w}" for p, row, w in CELLS]
)
def test_the_error_is_that_of_a_simulation(
    precision: str, row: str, size: int, on_ranks: OnRanks
) -> None:
    exact, simulated = reference_for("odd", 4), _simulated(precision)
    level = relative_difference(simulated.state, expected=exact.state, start=exact.start)
    if (row, size) == ("replicated", 2):
        add_row(_TITLE, precision, "W", "error")
        add_row(_TITLE, "simulation", "1", f"{level:.1e}")
    layout = LAYOUTS[row]
    config = settings(micro_batches=4, chunk=3, precision=precision, **layout.sharding)
    model = "odd, all of it used" if layout.same_modules else "odd"
    outcome = on_ranks(size, outcome_of, Run(config, model=model))[0]
    error = relative_difference(outcome.state, expected=exact.state, start=exact.start)
    add_row(_TITLE, row, str(size), f"{error:.1e}")
    assert error < 1.5 * level
    unperturbed = reference_for("odd", 4, rho=None)
    missed = relative_difference(unperturbed.state, expected=exact.state, start=exact.start)
    assert error < missed / 3, "no closer than training without a perturbation would be"


def _fidelity(config: dict[str, Any]) -> tuple[float | None, float | None]:

    engine = engine_for(Run(config, model="dropout_vit"))
    batch = own_part(engine, mini_batch(0, dtype=torch.float32))
    first = engine.train_step(batch, measure_fidelity=True).perturbation_fidelity
    return first, engine.train_step(batch).perturbation_fidelity


@pytest.mark.parametrize("row", LAYOUTS)
def test_what_is_left_of_a_perturbation_is_reported_when_asked(row: str, on_ranks: OnRanks) -> None:
    layout = LAYOUTS[row]
    for precision, tolerance in (("float32", 1e-3), ("bfloat16", 0.15)):
        config = settings(micro_batches=4, precision=precision, rho=0.1, **layout.sharding)
        measured = on_ranks(layout.sizes[-1], _fidelity, config)
        assert all(rank == measured[0] for rank in measured)
        fidelity, unasked = measured[0]
        assert fidelity == pytest.approx(1.0, abs=tolerance)
        assert fidelity != 1.0
        assert unasked is None


def test_weights_without_low_bits_lose_part_of_a_perturbation() -> None:
    """What the fidelity is for: it falls where masters are missing."""
    from msam_scale.sharding.fidelity import perturbation_fidelity

    generator = torch.Generator().manual_seed(0)
    masters = torch.randn(10_000, generator=generator)
    epsilon = torch.randn(10_000, generator=generator) * 1e-3
    narrow = masters.bfloat16().float()
    compute = torch.bfloat16
    kept = perturbation_fidelity(
        [masters], [epsilon], compute=compute, group=None, device=masters.device
    )
    lost = perturbation_fidelity(
        [narrow], [epsilon], compute=compute, group=None, device=masters.device
    )
    assert float(kept) == pytest.approx(1.0, abs=0.1)
    assert float(lost) < 0.8
