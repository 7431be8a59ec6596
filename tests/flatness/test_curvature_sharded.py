"""Curvature by differences of gradients, under every sharding, against exact products.

Two ranks with shares of the data of different sizes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import Run, engine_for, settings
from layouts import LAYOUTS
from rank_pool import OnRanks

from msam_scale.engine import Engine
from msam_scale.flatness.gradient_difference import DifferenceCurvature
from msam_scale.flatness.hessian_vector import ExactCurvature
from msam_scale.flatness.lanczos import largest_eigenvalues
from msam_scale.flatness.sharpness import rho_sharpness

_MODEL = "odd, all of it used"


def _shares(dtype: torch.dtype) -> list[list[tuple[torch.Tensor, ...]]]:
    """The batches of each of two ranks: three of rank 0 (uneven), one of rank 1."""
    first, second = mini_batch(0, dtype=dtype), mini_batch(1, dtype=dtype)
    cuts = [slice(0, 5), slice(5, 12), slice(12, 32)]
    return [[tuple(part[cut] for part in first) for cut in cuts], [second]]


def _expected() -> ExactCurvature:
    model = build_model(_MODEL, seed=0).double()
    batches = [batch for share in _shares(torch.float64) for batch in share]
    return ExactCurvature(model, loss_fn=cross_entropy, batches=batches)


def _difference_of(engine: Engine, dtype: torch.dtype, **arguments: Any) -> DifferenceCurvature:
    return DifferenceCurvature(
        engine._sharding,
        loss_fn=cross_entropy,
        batches=_shares(dtype)[engine.ranks.rank],
        ranks=engine.ranks,
        plan=engine.plan,
        precision=engine._precision,
        **arguments,
    )


def _measured(config: dict[str, Any]) -> dict[str, Any]:
    """Curvature by differences on this rank, and whether the weights are left as they were."""
    engine = engine_for(Run(config, model=_MODEL))
    dtype = torch.float64 if config["precision"] == "float64" else torch.float32
    before = engine.full_state_dict()
    curvature = _difference_of(engine, dtype)
    found = largest_eigenvalues(curvature, tolerance=5e-3, max_iterations=25)
    signs = curvature.random_signs(3)
    result = {
        "largest": found.values[0],
        "residual": found.residuals[0],
        "converged": found.converged,
        "error": curvature.relative_error(found.vectors[0]),
        "loss": curvature.loss(),
        "rho": rho_sharpness(curvature, rho=0.05),
        "num parameters": float(curvature.inner([signs], signs)[0]),
        # What a step far too large would give.
        "error at 1": _difference_of(engine, dtype, step=1.0).relative_error(found.vectors[0]),
    }
    after = engine.full_state_dict()
    return {**result, "kept": all(before[name].equal(after[name]) for name in before)}


@pytest.mark.parametrize("row", [row for row, layout in LAYOUTS.items() if 2 in layout.sizes])
def test_differences_agree_with_exact_products_under_every_sharding(
    row: str, on_ranks: OnRanks
) -> None:
    layout = LAYOUTS[row]
    config = settings(micro_batches=2, precision=layout.precision, **layout.sharding)
    exact = _expected()
    expected = largest_eigenvalues(exact, tolerance=1e-7)
    most_error = 1e-8 if layout.precision == "float64" else 1e-3
    first, second = on_ranks(2, _measured, config)
    assert first == second
    assert first["converged"]
    assert first["largest"] == pytest.approx(expected.values[0], rel=1e-4)
    assert first["error"] < most_error < 0.1 < first["error at 1"]
    assert first["loss"] == pytest.approx(exact.loss(), rel=1e-6)
    assert first["rho"] == pytest.approx(rho_sharpness(exact, rho=0.05), rel=1e-4)
    if row != "ZeRO-3":  # whose shards are padded
        assert first["num parameters"] == sum(exact._sizes)
    assert first["kept"]


def _gradient_norm(config: dict[str, Any]) -> float:
    curvature = _difference_of(engine_for(Run(config, model=_MODEL)), torch.float64, step=1e-4)
    gradient = curvature.gradient()
    return float(curvature.inner([gradient], gradient)[0]) ** 0.5


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
def test_vanilla_training_which_has_no_ascent_buffer_is_measured(
    strategy: str, on_ranks: OnRanks
) -> None:
    expected = float(_expected().gradient().norm())
    for norm in on_ranks(2, _gradient_norm, settings(algorithm="vanilla", strategy=strategy)):
        assert norm == pytest.approx(expected, rel=1e-10)


def _exact_product_of_a_share(config: dict[str, Any]) -> torch.Tensor:
    engine = engine_for(Run(config, model=_MODEL))
    curvature = ExactCurvature(
        engine.module,
        loss_fn=cross_entropy,
        batches=_shares(torch.float64)[engine.ranks.rank],
        world=engine.ranks.world,
    )
    return curvature.product(curvature.random_signs(0))


def test_ranks_that_share_the_samples_have_the_same_exact_products(on_ranks: OnRanks) -> None:
    exact = _expected()
    expected = exact.product(exact.random_signs(0))
    for product in on_ranks(2, _exact_product_of_a_share, settings(micro_batches=2)):
        torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="DifferenceCurvature"):
        on_ranks(1, _exact_product_of_a_share, settings(micro_batches=2, strategy="fsdp"))


def _largest_without_the_sum_over_groups(config: dict[str, Any]) -> float:
    engine = engine_for(Run(config, model=_MODEL))
    curvature = _difference_of(engine, torch.float64)
    curvature._across = None
    return largest_eigenvalues(curvature, tolerance=1e-2, max_iterations=10).values[0]


def test_ranks_that_keep_their_gradients_to_themselves_are_found_out(on_ranks: OnRanks) -> None:
    """Control: the comparison above fails if the gradient is one rank's part of the mean."""
    config = settings(micro_batches=2)
    expected = largest_eigenvalues(_expected(), tolerance=1e-3).values[0]
    for largest in on_ranks(2, _largest_without_the_sum_over_groups, config):
        assert largest < 0.9 * expected
