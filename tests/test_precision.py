"""bfloat16 computation over float32 parameters, and which parameters are refused."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import Run, engine_for, outcome_of, outcomes_of, relative_difference, settings
from rank_pool import OnRanks

from msam_scale.errors import UserError
from msam_scale.initialization import initialize


def test_bfloat16_computes_in_bfloat16_and_keeps_float32() -> None:
    outputs: set[torch.dtype] = set()

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        outputs.add(model(batch[0]).dtype)
        return cross_entropy(model, batch)

    engine = engine_for(Run(settings(micro_batches=2, precision="bfloat16")), loss_fn=loss_fn)
    engine.train_step(mini_batch(0, dtype=torch.float32))
    assert outputs == {torch.bfloat16}
    tensors = [t for p in engine.module.parameters() for t in (p, p.grad) if t is not None]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    state = [value for one in engine.optimizer.state.values() for value in one.values()]
    assert {value.dtype for value in state} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters_are_refused(dtype: torch.dtype) -> None:
    model = build_model("odd").to(dtype)
    with pytest.raises(UserError, match=r"places is .*float32.*precision: bfloat16") as caught:
        initialize(model, config=settings(micro_batches=2, precision="bfloat16"))
    assert str(dtype).removeprefix("torch.") in str(caught.value)


def test_wide_parameters_are_not_narrowed() -> None:
    model = build_model("odd").double()
    with pytest.raises(UserError, match="precision: float64"):
        initialize(model, config=settings(micro_batches=2, precision="float32"))


def test_narrow_frozen_parameters_are_kept() -> None:
    model = build_model("linear")
    model.register_parameter(
        "table", torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)
    )
    engine = initialize(model, config=settings(micro_batches=2, precision="float32"))
    engine.train_step(mini_batch(0, dtype=torch.float32))
    assert engine.full_state_dict()["table"].dtype is torch.bfloat16


def test_bfloat16_stays_near_float32(on_ranks: OnRanks) -> None:
    """bfloat16 has 8 significant bits, a rounding of up to 2⁻⁹: measured 0.3 % after 10 steps."""
    start = build_model("odd").state_dict()
    exact = outcome_of(Run(settings(micro_batches=4, precision="float32"))).state
    run = Run(settings(micro_batches=4, precision="bfloat16"))
    alone = outcome_of(run).state
    noise = relative_difference(alone, expected=exact, start=start)
    assert 1e-4 < noise < 0.02
    for outcomes in on_ranks(2, outcomes_of, [run]):
        # Only the order of float32 sums differs, by 1e-7; but one weight that then rounds to the
        # next bfloat16 is as far off as bfloat16 ever is: two runs differ by up to √2 of the noise.
        assert relative_difference(outcomes[0].state, expected=alone, start=start) < 2 * noise


def test_gradients_in_bfloat16_are_summed_in_float32(on_ranks: OnRanks) -> None:
    """One step, from the same weights and in the same chunks: only the order of sums differs."""
    start = build_model("odd").state_dict()
    run = Run(settings(algorithm="vanilla", chunk=16, precision="bfloat16"), steps=1)
    alone = outcome_of(run).state
    for outcomes in on_ranks(2, outcomes_of, [run]):
        assert relative_difference(outcomes[0].state, expected=alone, start=start) < 1e-4


def test_autocast_around_the_step_does_not_hide_the_perturbation() -> None:
    """Autocast keeps narrow copies of the weights until the outermost context is left."""

    def trained(outer: AbstractContextManager[Any]) -> dict[str, torch.Tensor]:
        config = settings(micro_batches=2, precision="bfloat16", rho=1.0)
        engine = engine_for(Run(config, model="linear"))
        with outer:
            for step in range(3):
                engine.train_step(mini_batch(step, dtype=torch.float32))
        return engine.full_state_dict()

    start = build_model("linear").state_dict()
    expected = trained(nullcontext())
    state = trained(torch.autocast("cpu", dtype=torch.bfloat16))
    assert relative_difference(state, expected=expected, start=start) < 1e-6


def test_inputs_are_widened_and_never_narrowed() -> None:
    seen = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        seen.append([tensor.dtype for tensor in batch])
        return cross_entropy(model, batch)

    engine = engine_for(Run(settings(micro_batches=1), model="linear"), loss_fn=loss_fn)
    images, labels = mini_batch(0, dtype=torch.float32)
    engine.train_step((images, labels.to(torch.uint8).long()))
    assert seen[0] == [torch.float64, torch.int64]
