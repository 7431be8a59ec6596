"""`Engine.sharpness` on ranks, in every layout: exact, and without a trace in the run around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import Run, engine_for, own_part, settings
from layouts import LAYOUTS
from rank_pool import OnRanks

from msam_scale.engine import Engine
from msam_scale.flatness.gradient_difference import DifferenceCurvature
from msam_scale.flatness.hessian_vector import ExactCurvature
from msam_scale.flatness.lanczos import NotFiniteError, largest_eigenvalues
from msam_scale.flatness.sharpness import m_sharpness, rho_sharpness

pytestmark = pytest.mark.layouts

_MODEL = "odd, all of it used"
_RHO = 0.05
_HOLDS_WHOLE = ("replicated", "ZeRO-1", "ZeRO-2")
# Vanilla training has no ascent buffer; where a phase ends, the plan is not yet the next step's.
_CASES = (
    ("replicated", "msam"),
    ("FSDP", "msam"),
    ("FSDP", "vanilla"),
    ("hybrid FSDP 2x2", "phases"),
    ("ZeRO-1", "vanilla"),
    ("ZeRO-2", "msam"),
    ("ZeRO-3", "msam"),
    ("hybrid ZeRO-3 2x2", "vanilla"),
)
# Their eigenvalues take half a minute of collectives, and are those of ZeRO-3.
_WITHOUT_EIGENVALUES = ("hybrid ZeRO-3 2x2",)

_Batches = list[tuple[torch.Tensor, ...]]


def _batches(dtype: torch.dtype, *, rank: int) -> _Batches:
    """A rank's own samples. Ranks have batches of other sizes, and rank 0 has one more of them."""
    sizes = [8, 8, 5] if rank == 0 else [4 + rank] * 2
    whole = mini_batch(rank, dtype=dtype)
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [
        tuple(part[start : start + size] for part in whole)
        for start, size in zip(starts, sizes, strict=True)
    ]


class _Drawing:
    """Batches whose loader draws from torch's generator, as the run's next step may."""

    def __init__(self, batches: _Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        torch.rand(3)
        return iter(self._batches)


def _config(row: str, algorithm: str) -> dict[str, Any]:
    layout = LAYOUTS[row]
    is_vanilla = algorithm == "vanilla"
    config = settings(
        algorithm="vanilla" if is_vanilla else "msam",
        micro_batches=None if is_vanilla else 4,
        precision=layout.precision,
        **layout.sharding,
    )
    if algorithm == "phases":
        config["objective"]["phases"] = [
            {"until": 0.5, "algorithm": "sam"},
            {"until": 1.0, "algorithm": "msam"},
        ]
    return config


def _started(config: dict[str, Any]) -> Engine:
    """After the first of two steps, with a layer that is in evaluation mode."""
    engine = engine_for(Run(config, model=_MODEL), num_steps=2)
    engine.module.norm1.eval()  # type: ignore[operator, union-attr]
    engine.train_step(_part(engine, 0))
    return engine


def _part(engine: Engine, step: int) -> tuple[torch.Tensor, ...]:
    return own_part(engine, mini_batch(step, dtype=_dtype(engine)))


def _dtype(engine: Engine) -> torch.dtype:
    return torch.float64 if engine.config.precision == "float64" else torch.float32


def _ended(engine: Engine) -> tuple[dict[str, torch.Tensor], float, list[bool]]:
    loss = engine.train_step(_part(engine, 1)).loss
    modes = [module.training for module in engine.module.modules()]
    return engine.full_state_dict(), loss, modes


def _differences(engine: Engine) -> dict[str, float]:
    """Products by differences along the gradient, which no layout changes the meaning of."""

    def curvature(step: float | None = None) -> DifferenceCurvature:
        return DifferenceCurvature(
            engine._sharding,
            loss_fn=cross_entropy,
            batches=_batches(_dtype(engine), rank=engine.ranks.rank),
            ranks=engine.ranks,
            plan=engine._followed,
            precision=engine._precision,
            step=step,
        )

    chosen = curvature()
    gradient, signs = chosen.gradient(), chosen.random_signs(3)
    return {
        "square": float(chosen.inner([gradient], gradient)[0]),
        "form": float(chosen.inner([chosen.product(gradient)], gradient)[0]),
        "error": chosen.relative_error(gradient),
        "error of a step far too large": curvature(1.0).relative_error(gradient),
        "number": float(chosen.inner([signs], signs)[0]),
    }


def _measured(config: dict[str, Any], *, finds_eigenvalues: bool) -> dict[str, Any]:
    """What one engine measures between two steps, beside another that does not measure."""
    state, loss, modes = _ended(_started(config))
    engine = _started(config)
    before, drawn = engine.full_state_dict(), torch.get_rng_state()
    batches = _Drawing(_batches(_dtype(engine), rank=engine.ranks.rank))
    found: dict[str, Any] = {"state": before}
    if finds_eigenvalues:
        found["sharpness"] = engine.sharpness(batches, rho=_RHO)  # type: ignore[arg-type]
    found["generator kept"] = torch.equal(torch.get_rng_state(), drawn)
    found |= _differences(engine)
    after = engine.full_state_dict()
    found["weights kept"] = all(before[name].equal(after[name]) for name in before)
    other_state, other_loss, other_modes = _ended(engine)
    found["run kept"] = (
        all(state[name].equal(other_state[name]) for name in state)
        and loss == other_loss
        and modes == other_modes
        and not all(modes)
    )
    return found


def _exact(state: dict[str, torch.Tensor], batches: _Batches) -> ExactCurvature:
    """In one process, in float64."""
    model = build_model(_MODEL).double()
    model.load_state_dict(state)
    return ExactCurvature(model, loss_fn=cross_entropy, batches=batches)


@pytest.mark.parametrize(("row", "algorithm"), _CASES)
def test_it_is_exact_in_every_layout_and_leaves_the_run_alone(
    row: str, algorithm: str, on_ranks: OnRanks
) -> None:
    size = 2 if 2 in LAYOUTS[row].sizes else 4
    config = _config(row, algorithm)
    finds_eigenvalues = row not in _WITHOUT_EIGENVALUES
    everyone = on_ranks(size, _measured, config, finds_eigenvalues=finds_eigenvalues)
    for found in everyone:
        assert found["generator kept"]
        assert found["weights kept"]
        assert found["run kept"]
    first = everyone[0]
    shares = [_batches(torch.float64, rank=rank) for rank in range(size)]
    exact = _exact(first["state"], [batch for share in shares for batch in share])

    is_wide = config["precision"] == "float64"
    gradient = exact.gradient()
    form = float(gradient @ exact.product(gradient))
    assert first["error"] < (1e-7 if is_wide else 5e-3)
    assert first["error"] < 0.1 * first["error of a step far too large"]
    rounding = 1e-6 if is_wide else 1e-4
    assert first["square"] == pytest.approx(float(gradient @ gradient), rel=rounding)
    assert first["form"] == pytest.approx(form, rel=rounding + 3 * first["error"])
    if "ZeRO-3" not in row:  # whose shards are padded
        assert first["number"] == len(gradient)
    if not finds_eigenvalues:
        return

    sharpness = first["sharpness"]
    assert all(found["sharpness"] == sharpness for found in everyone)
    assert sharpness.converged
    assert (sharpness.product_error == 0) == (row in _HOLDS_WHOLE)
    largest = largest_eigenvalues(exact, tolerance=1e-6, max_iterations=200)
    assert largest.converged
    assert float(sharpness) == sharpness.lambda_max == sharpness.eigenvalues[0]
    error = rounding + 3 * sharpness.product_error
    assert sharpness.lambda_max == pytest.approx(largest.values[0], rel=error)
    assert sharpness.loss == pytest.approx(exact.loss(), rel=1e-5)
    # A difference of losses, of which the rise is a tenth at least.
    assert sharpness.rho_sharpness == pytest.approx(rho_sharpness(exact, rho=_RHO), rel=1e-4)
    # The first batches of all ranks, and the second ones; rank 0's third has no others beside it.
    joined = [
        tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        for parts in zip(*shares, strict=False)
    ]
    surfaces = [_exact(first["state"], [batch]) for batch in joined]
    assert sharpness.m_sharpness == pytest.approx(m_sharpness(surfaces, rho=_RHO), rel=1e-4)
    assert sharpness.micro_batch_size == len(joined[0][1])
    assert sharpness.num_micro_batches == 2
    assert sharpness.trace is None


def _exact_product_of_a_share(config: dict[str, Any]) -> torch.Tensor:
    engine = engine_for(Run(config, model=_MODEL))
    curvature = ExactCurvature(
        engine.module,
        loss_fn=cross_entropy,
        batches=_batches(torch.float64, rank=engine.ranks.rank),
        world=engine.ranks.world,
    )
    return curvature.product(curvature.random_signs(0))


def test_exact_products_need_whole_parameters(on_ranks: OnRanks) -> None:
    with pytest.raises(ValueError, match="DifferenceCurvature"):
        on_ranks(1, _exact_product_of_a_share, settings(micro_batches=2, strategy="fsdp"))


def _measured_with_a_bad_sample(config: dict[str, Any]) -> None:
    engine = engine_for(Run(config, model="linear"))
    images, labels = mini_batch(0)
    if engine.ranks.rank == 1:
        images[3] = float("nan")
    with pytest.raises(NotFiniteError, match="the loss is nan"):
        engine.sharpness([(images, labels)])


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_rank_is_refused_on_all(
    strategy: str, on_ranks: OnRanks
) -> None:
    on_ranks(2, _measured_with_a_bad_sample, settings(micro_batches=2, strategy=strategy))
