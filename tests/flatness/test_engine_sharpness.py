"""`Engine.sharpness` in every layout, against the exact value, and beside a run it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import BATCH_SIZE, build_model, cross_entropy, mini_batch
from engine_runs import Run, engine_for, own_part, settings
from layouts import LAYOUTS
from rank_pool import OnRanks

from msam_scale.flatness.gradient_difference import DifferenceCurvature
from msam_scale.flatness.hessian_vector import ExactCurvature
from msam_scale.flatness.lanczos import NotFiniteError, largest_eigenvalues
from msam_scale.flatness.measures import Sharpness
from msam_scale.flatness.sharpness import m_sharpness, rho_sharpness

_MODEL = "odd, all of it used"
_LAID_OUT = [
    (row, size)
    for row, layout in LAYOUTS.items()
    for size in (layout.sizes if row == "FSDP" else layout.sizes[-1:])
]


def _dtype(config: dict[str, Any]) -> torch.dtype:
    return torch.float64 if config["precision"] == "float64" else torch.float32


def _batches(dtype: torch.dtype, *, rank: int, size: int) -> list[tuple[torch.Tensor, ...]]:
    """This rank's batches of three mini-batches; other numbers and sizes on each rank."""
    batches = []
    for number in range(3):
        whole = mini_batch(number, dtype=dtype)
        # Rank r's share is larger than that of rank r - 1, and rank 0's is cut once more.
        share = torch.arange(BATCH_SIZE)[torch.arange(BATCH_SIZE) * size // BATCH_SIZE == rank]
        batches.append(tuple(part[share[rank % 2 + number :]] for part in whole))
    if rank == 0:
        first = batches.pop(0)
        batches = [
            *(tuple(part[cut] for part in first) for cut in (slice(0, 3), slice(3, None))),
            *batches,
        ]
    return batches


def _all_batches(size: int) -> list[tuple[torch.Tensor, ...]]:
    return [one for rank in range(size) for one in _batches(torch.float64, rank=rank, size=size)]


def _expected(size: int) -> ExactCurvature:
    """In one process, in float64, at the weights of the run's start."""
    model = build_model(_MODEL, seed=0).double()
    return ExactCurvature(model, loss_fn=cross_entropy, batches=_all_batches(size))


def _measured(config: dict[str, Any], model: str = _MODEL, **arguments: Any) -> Sharpness:
    engine = engine_for(Run(config, model=model))
    ranks = engine.ranks
    batches = _batches(_dtype(config), rank=ranks.rank, size=ranks.size)
    return engine.sharpness(batches, **arguments)


@pytest.mark.parametrize(("row", "size"), _LAID_OUT)
def test_it_is_the_exact_one_in_every_layout(row: str, size: int, on_ranks: OnRanks) -> None:
    layout = LAYOUTS[row]
    config = settings(micro_batches=4, precision=layout.precision, **layout.sharding)
    exact = _expected(size)
    pairs = largest_eigenvalues(exact, num_eigenvalues=2, tolerance=1e-6, max_iterations=200)
    assert pairs.converged
    found = on_ranks(size, _measured, config, num_eigenvalues=2, rho=0.05)
    assert all(one == found[0] for one in found)
    first: Sharpness = found[0]
    is_wide = layout.precision == "float64"
    allowed = 1e-6 if is_wide else 1e-4
    if row in ("replicated", "ZeRO-1", "ZeRO-2"):
        assert first.product_error == 0
    else:
        assert 0 < first.product_error < (1e-8 if is_wide else 1e-3)
    assert first.converged
    assert float(first) == first.lambda_max == first.eigenvalues[0]
    assert first.eigenvalues == pytest.approx(pairs.values, rel=allowed)
    assert first.loss == pytest.approx(exact.loss(), rel=1e-6)
    assert first.rho_sharpness == pytest.approx(rho_sharpness(exact, rho=0.05), rel=1e-4)
    assert first.micro_batch_size is not None
    assert first.m_sharpness == pytest.approx(_m_sharpness(size, first.micro_batch_size), rel=1e-4)
    assert first.trace is None


def _m_sharpness(size: int, micro_batch_size: int) -> float:
    """Over the i-th batches of all ranks, as many as are of the first's size, independently."""
    shares = [_batches(torch.float64, rank=rank, size=size) for rank in range(size)]
    model = build_model(_MODEL, seed=0).double()
    surfaces = []
    for parts in zip(*shares, strict=False):
        if sum(len(labels) for _, labels in parts) != micro_batch_size:
            break
        joined = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        surfaces.append(ExactCurvature(model, loss_fn=cross_entropy, batches=[joined]))
    return m_sharpness(surfaces, rho=0.05)


@pytest.mark.parametrize("row", ["replicated", "FSDP", "ZeRO-3"])
def test_the_trace_is_within_its_error(row: str, on_ranks: OnRanks) -> None:
    layout = LAYOUTS[row]
    config = settings(micro_batches=4, precision=layout.precision, **layout.sharding)
    # Of the linear model the Hessian is the mean of (diag(p) - ppᵀ) ⊗ xxᵀ, with a 1 in x.
    model = build_model("linear", seed=0).double()
    traces = []
    for images, _ in _all_batches(2):
        probabilities = model(images).softmax(-1).detach()
        curvature = 1 - probabilities.square().sum(-1)
        traces.append(curvature * (images.flatten(1).square().sum(-1) + 1))
    trace = float(torch.cat(traces).mean())
    found = on_ranks(2, _measured, config, "linear", num_probes=12, iterations=1, tolerance=10.0)
    first, second = (one.trace for one in found)
    assert first == second
    assert first.num_probes == 12
    assert first.standard_error < 0.2 * trace
    assert abs(first.mean - trace) < 3 * first.standard_error


def _trained(
    run: Run, *, measured_after: int | None, num_steps: int
) -> tuple[dict[str, torch.Tensor], list[float], list[bool]]:
    """State, losses and modes after a run that is measured once on the way, or not."""
    engine = engine_for(run, num_steps=num_steps)
    engine.train()
    dtype, losses = _dtype(run.config), []
    for step in range(num_steps):
        if step == measured_after:
            batches = _batches(dtype, rank=engine.ranks.rank, size=engine.ranks.size)
            engine.sharpness(batches[:1], iterations=2, rho=0.05)
        losses.append(engine.train_step(own_part(engine, mini_batch(step, dtype=dtype))).loss)
    modes = [module.training for module in engine.module.modules()]
    return engine.full_state_dict(), losses, modes


def _with_and_without(
    run: Run, *, num_steps: int = 3, measured_after: int = 2
) -> tuple[bool, bool, bool]:
    plain, losses, modes = _trained(run, measured_after=None, num_steps=num_steps)
    state, others, other_modes = _trained(run, measured_after=measured_after, num_steps=num_steps)
    equal = all(plain[name].equal(state[name]) for name in plain)
    return equal, losses == others, modes == other_modes


@pytest.mark.parametrize("row", LAYOUTS)
@pytest.mark.parametrize("algorithm", ["vanilla", "msam"])
def test_the_run_goes_on_bit_for_bit_as_without_it(
    row: str, algorithm: str, on_ranks: OnRanks
) -> None:
    layout = LAYOUTS[row]
    micro_batches = 4 if algorithm == "msam" else None
    config = settings(
        algorithm=algorithm,
        micro_batches=micro_batches,
        precision=layout.precision,
        **layout.sharding,
    )
    outcomes = on_ranks(
        4 if 2 not in layout.sizes else 2, _with_and_without, Run(config, model=_MODEL)
    )
    assert all(outcome == (True, True, True) for outcome in outcomes)


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
@pytest.mark.parametrize("model", ["wide_resnet", "dropout_vit"])
def test_running_statistics_and_dropout_are_left_alone(
    model: str, strategy: str, on_ranks: OnRanks
) -> None:
    norm_samples = 8 if model == "wide_resnet" else None
    config = settings(micro_batches=2, norm_samples=norm_samples, strategy=strategy)
    for outcome in on_ranks(2, _with_and_without, Run(config, model=model)):
        assert outcome == (True, True, True)


def _at_a_switch(config: dict[str, Any]) -> tuple[float, bool]:
    """λ_max just before the step that begins the second phase, and whether the run is the same."""
    run = Run(config, model=_MODEL)
    engine = engine_for(run, num_steps=2)
    engine.train_step(own_part(engine, mini_batch(0)))
    assert engine.plan != engine._followed
    ranks = engine.ranks
    found = engine.sharpness(_batches(torch.float64, rank=ranks.rank, size=ranks.size))
    model = build_model(_MODEL, seed=0).double()
    model.load_state_dict(engine.full_state_dict())
    exact = ExactCurvature(model, loss_fn=cross_entropy, batches=_all_batches(ranks.size))
    expected = largest_eigenvalues(exact, tolerance=1e-6).values[0]
    outcome = _with_and_without(run, num_steps=2, measured_after=1)
    return abs(found.lambda_max / expected - 1), outcome == (True, True, True)


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
def test_it_may_be_measured_where_a_phase_ends(strategy: str, on_ranks: OnRanks) -> None:
    config = settings(micro_batches=4, strategy=strategy)
    config["objective"]["phases"] = [
        {"until": 0.5, "algorithm": "sam"},
        {"until": 1.0, "algorithm": "msam"},
    ]
    for error, same in on_ranks(2, _at_a_switch, config):
        assert error < 1e-6
        assert same


def _far_from_exact(config: dict[str, Any], fault: str) -> float:
    """λ_max with something of the method broken."""
    with pytest.MonkeyPatch.context() as patch:
        if fault == "a step too large":
            patch.setattr(DifferenceCurvature, "_chosen_step", lambda *_: 1.0)
        elif fault == "batches that count the same":
            patch.setattr("msam_scale.flatness.gradient_difference.num_samples", lambda batch: 1)
        elif fault == "whole parameters counted on every rank":
            patch.setattr(DifferenceCurvature, "_mask_of_counted", lambda self: None)
        else:
            assert fault == "none"
        return _measured(config).lambda_max


@pytest.mark.parametrize(
    "fault",
    [
        "a step too large",
        "batches that count the same",
        "whole parameters counted on every rank",
    ],
)
def test_a_broken_method_is_found_out(fault: str, on_ranks: OnRanks) -> None:
    """Control: with a fault λ_max is outside of what the comparison above allows."""
    config = settings(micro_batches=4, strategy="fsdp")
    expected = largest_eigenvalues(_expected(2), tolerance=1e-6).values[0]
    for found in on_ranks(2, _far_from_exact, config, fault):
        assert abs(found / expected - 1) > 1e-6


def _measured_at_not_a_number(config: dict[str, Any]) -> None:
    engine = engine_for(Run(config, model="linear"))
    with torch.no_grad():
        for parameter in engine.module.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="the loss is nan"):
        engine.sharpness([mini_batch(0)])


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
def test_a_loss_that_is_not_finite_is_refused_on_all_ranks(
    strategy: str, on_ranks: OnRanks
) -> None:
    on_ranks(2, _measured_at_not_a_number, settings(micro_batches=2, strategy=strategy))


def test_batches_have_to_be_there_and_to_stay() -> None:
    engine = engine_for(Run(settings(micro_batches=2), model="linear"))
    with pytest.raises(ValueError, match="iterator"):
        engine.sharpness(iter([mini_batch(0)]))
    with pytest.raises(ValueError, match="no sample"):
        engine.sharpness([])
    with pytest.raises(ValueError, match="num_eigenvalues"):
        engine.sharpness([mini_batch(0)], num_eigenvalues=5, iterations=4)
    with pytest.raises(ValueError, match="rho"):
        engine.sharpness([mini_batch(0)], rho=-1.0)


def test_checkpointed_blocks_are_differentiated_twice() -> None:
    plain, checkpointed = settings(micro_batches=2), settings(micro_batches=2)
    checkpointed["training"] = {"activation_checkpointing": True}
    expected, found = (
        engine_for(Run(config, model="dropout_vit")).sharpness([mini_batch(0)])
        for config in (plain, checkpointed)
    )
    assert found.product_error == 0
    assert found.lambda_max == pytest.approx(expected.lambda_max, rel=1e-9)


def test_differences_in_bfloat16_take_a_step_that_rounding_leaves_something_of() -> None:
    """One too large for the model gives products near zero, which hardly change with it."""
    wide = settings(micro_batches=2, precision="float32")
    narrow = settings(micro_batches=2, precision="bfloat16", strategy="fsdp")
    batch = mini_batch(0, dtype=torch.float32)
    expected, found = (
        engine_for(Run(config, model="dropout_vit")).sharpness([batch]) for config in (wide, narrow)
    )
    assert expected.product_error == 0
    assert 1e-3 < found.product_error < 0.2
    assert found.lambda_max == pytest.approx(expected.lambda_max, rel=0.2)


def test_kinks_are_said(caplog: pytest.LogCaptureFixture) -> None:
    config = settings(micro_batches=2, norm_samples=8, strategy="fsdp")
    found = engine_for(Run(config, model="wide_resnet")).sharpness([mini_batch(0)])
    assert found.product_error > 0.1
    assert "λ_max may be off by any factor" in caplog.text
    caplog.clear()
    engine_for(Run(settings(micro_batches=2, strategy="fsdp"), model=_MODEL)).sharpness(
        [mini_batch(0)]
    )
    assert not caplog.text
