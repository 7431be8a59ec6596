"""Every layout keeps its contract (`contract.py`): one job on its ranks, seen claim by claim."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import (
    BAD_PASSES,
    CLIP_NORM,
    DECAY,
    MICRO_BATCHES,
    MODEL,
    ROWS,
    STEPS_AFTER,
    STEPS_BEFORE,
    Seen,
    State,
    WholeState,
    keep_contract,
    predictions_of,
    same,
    save_canonical,
)
from engine_models import build_model, mini_batch
from engine_runs import ADAMW, Run, outcome_of, relative_difference, settings
from rank_pool import OnRanks
from reference import Reference, reference_run
from references import build_optimizer, reference_for
from report import add_row
from saved_state import checkpoint_tensors

pytestmark = pytest.mark.layouts

_TITLE = "Contract: relative error of the update after 5 steps, and its bound"
_NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Layouts round elsewhere than a single process does, and no worse than so.
_TIMES_SINGLE_PROCESS = 5.0
_TIMES_SIMULATION = 2.0

_canonical: dict[torch.dtype, tuple[str, WholeState]] = {}
_seen: dict[str, list[Seen]] = {}


@pytest.fixture
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, on_ranks: OnRanks
) -> list[Seen]:
    """What the ranks of the row named by the test saw; the job runs once."""
    name: str = request.node.callspec.params["row"]
    row = ROWS[name]
    if row.dtype not in _canonical:
        precision = str(row.dtype).removeprefix("torch.")
        folder = str(tmp_path_factory.mktemp("canonical"))
        _canonical[row.dtype] = folder, save_canonical(precision, folder)
    if name not in _seen:
        folder = str(tmp_path_factory.mktemp("own"))
        _seen[name] = on_ranks(row.size, keep_contract, name, _canonical[row.dtype][0], folder)
    return _seen[name]


def _reference(steps: int, **over: Any) -> Reference:
    kind: dict[str, Any] = {"optimizer": "adamw", "clip_norm": CLIP_NORM}
    return reference_for("odd", MICRO_BATCHES, steps=steps, **{**kind, **over})


def _error(state: State, reference: Reference) -> float:
    return relative_difference(state, expected=reference.state, start=reference.start)


@cache
def _bound(precision: str, steps: int) -> float:
    """How far from the reference a layout may be: what a single process shows, times a little."""
    if precision == "float64":
        return 1e-9
    if precision == "float32":
        config = settings(
            micro_batches=MICRO_BATCHES,
            chunk=3,
            optimizer=ADAMW,
            clip_norm=CLIP_NORM,
            precision=precision,
        )
        alone = outcome_of(Run(config, model=MODEL, steps=steps))
        return max(1e-5, _TIMES_SINGLE_PROCESS * _error(alone.state, _reference(steps)))
    # The reference in float32, whose matrix products torch rounds to the narrow type.
    model = build_model(MODEL)
    forward = model.forward

    def narrow(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=_NARROW[precision]):
            return forward(images).float()  # type: ignore[no-any-return]

    model.forward = narrow  # type: ignore[method-assign]
    simulated = reference_run(
        model,
        mini_batch=lambda step: mini_batch(step, dtype=torch.float32),
        steps=steps,
        micro_batches=MICRO_BATCHES,
        rho=0.1,
        build_optimizer=build_optimizer("adamw"),
        clip_norm=CLIP_NORM,
        seed=7,
    )
    return _TIMES_SIMULATION * _error(simulated.state, _reference(steps))


rows = pytest.mark.parametrize("row", ROWS)


@rows
def test_it_goes_on_from_a_single_process_as_the_reference_does(row: str, seen: list[Seen]) -> None:
    """Whatever happened in between: bad steps, an error, evaluations, a look at the average."""
    steps = STEPS_BEFORE + STEPS_AFTER
    bound = _bound(ROWS[row].precision, steps)
    first, *others = seen
    assert first.saved is not None
    error = _error(first.saved.weights, _reference(steps))
    if row == next(iter(ROWS)):
        add_row(_TITLE, "", "error", "bound")
    add_row(_TITLE, row, f"{error:.1e}", f"{bound:.1e}")
    assert error < bound
    unperturbed = _error(_reference(steps, rho=None).state, _reference(steps))
    assert bound < unperturbed / 3, "it would not be told from training without a perturbation"
    expected = _reference(steps)
    norms = expected.gradient_norms[STEPS_BEFORE:]
    assert min(norms) < CLIP_NORM < max(norms), "clipping would be seen on one side only"
    right = zip(expected.losses, expected.gradient_norms, expected.ascent_norms, strict=True)
    for figures, of_step in zip(first.figures, list(right)[STEPS_BEFORE:], strict=True):
        assert figures == pytest.approx(of_step, rel=10 * bound)
    for other in others:
        assert other.figures == first.figures
        assert other.saved is not None
        assert same(other.saved.tensors(), first.saved.tensors())


@rows
def test_bad_steps_errors_and_evaluation_leave_no_trace(row: str, seen: list[Seen]) -> None:
    """Every rank skips what one rank overflows in, and restores every bit that was perturbed."""
    for rank in seen:
        assert rank.traces == []
        bad = [True for _ in BAD_PASSES]
        assert rank.skipped == [False, *bad, False, False, *[False, True] * 2]


@rows
def test_it_takes_and_saves_the_state_of_a_single_process(row: str, seen: list[Seen]) -> None:
    """One format: a checkpoint holds the same tensors whoever saves it."""
    canonical = _canonical[ROWS[row].dtype][1]
    saved, first = checkpoint_tensors(seen[0].folder), seen[0].saved
    assert first is not None
    assert all(same(rank.loaded.tensors(), canonical.tensors()) for rank in seen)
    assert same(saved, first.tensors())
    described = {name: (t.dtype, t.shape) for name, t in saved.items()}
    assert described == {name: (t.dtype, t.shape) for name, t in canonical.tensors().items()}
    writers = {path.name.split("-")[1] for path in Path(seen[0].folder).glob("tensors-*")}
    assert len(writers) == ROWS[row].size, "every rank writes"


@rows
def test_a_run_that_goes_back_goes_on_bit_for_bit(row: str, seen: list[Seen]) -> None:
    steps = STEPS_BEFORE + STEPS_AFTER + 1
    for rank in seen:
        once, again = rank.goes_on
        assert same(once.tensors(), again.tensors())
        error = _error(once.weights, _reference(steps))
        assert error < _bound(ROWS[row].precision, steps)


@rows
def test_the_average_is_that_of_the_weights_after_good_steps(row: str, seen: list[Seen]) -> None:
    first, bound = seen[0], {torch.float64: 1e-12, torch.float32: 1e-5}[ROWS[row].dtype]
    names = [name for name, t in first.loaded.average.items() if t.is_floating_point()]
    start = {name: first.loaded.average[name].double() for name in names}
    expected = dict(start)
    for weights, average in zip(first.weights, first.averages, strict=True):
        for name in names:
            expected[name] = DECAY * expected[name] + (1 - DECAY) * weights[name].double()
        found = {name: average[name] for name in names}
        # In the distance that the average has gone, which is some hundredths of a weight.
        assert relative_difference(found, expected=expected, start=start) < bound
    # A forward inside `averaged_weights` computes with it, as nearly as with the run's own weights.
    found, own = first.averaged_prediction, first.prediction
    assert first.saved is not None
    assert found is not None
    assert own is not None
    right = predictions_of(first.averages[1])
    noise = (own - predictions_of(first.saved.weights)).norm()
    error, missed = (found - right).norm(), (predictions_of(first.weights[1]) - right).norm()
    floor = 1e-6 if ROWS[row].dtype is torch.float32 else 1e-12
    assert error < max(3 * noise, floor * right.norm()) < missed


@rows
def test_precision_and_loss_scale_are_what_was_asked_for(row: str, seen: list[Seen]) -> None:
    precision = ROWS[row].precision
    # DeepSpeed's ZeRO-3 gathers in the type that computes; others leave that to autocast.
    if "ZeRO-3" in row and precision in _NARROW:
        assert seen[0].gathered == {_NARROW[precision]}
    halved = [256.0, 128.0, 64.0, 32.0] if precision == "float16" else [1.0] * 4
    tolerance = {"float64": 1e-12, "float32": 1e-3}.get(precision, 0.15)
    for rank in seen:
        assert rank.scales == [*halved[:3], halved[2], halved[2], *halved[2:] * 2]
        assert rank.fidelity == [pytest.approx(1.0, abs=tolerance), None, None]
        assert rank.fidelity == seen[0].fidelity
        assert rank.lengths == [pytest.approx(0.1, rel=1e-5), None, None]
