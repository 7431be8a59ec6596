"""bfloat16 computation over float32 parameters, and which parameters are refused."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import Run, engine_for, outcome_of, outcomes_of, relative_difference, settings
from hypothesis import given
from hypothesis import strategies as st
from rank_pool import OnRanks

from msam_scale.config import load_config
from msam_scale.errors import UserError
from msam_scale.initialization import initialize
from msam_scale.ranks import join
from msam_scale.sharding.fidelity import perturbation_fidelity
from msam_scale.sharding.loss_scale import LossScale
from msam_scale.sharding.zero import private_api


def test_bfloat16_computes_in_bfloat16_and_keeps_float32() -> None:
    outputs: set[torch.dtype] = set()

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        outputs.add(model(batch[0]).dtype)
        return cross_entropy(model, batch)

    engine = engine_for(Run(settings(micro_batches=2, precision="bfloat16")), loss_fn=loss_fn)
    engine.train_step(mini_batch(0, dtype=torch.float32))
    assert outputs == {torch.bfloat16}
    assert engine.predict(mini_batch(0, dtype=torch.float32)[0]).dtype is torch.bfloat16
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


def test_weights_without_low_bits_lose_part_of_a_perturbation() -> None:
    """What the fidelity is for: it falls where masters are missing."""
    generator = torch.Generator().manual_seed(0)
    masters = torch.randn(10_000, generator=generator)
    epsilon = torch.randn(10_000, generator=generator) * 1e-3
    kept, lost = (
        float(
            perturbation_fidelity(
                [weights],
                [epsilon],
                compute=torch.bfloat16,
                group=None,
                device=masters.device,
            )
        )
        for weights in (masters, masters.bfloat16().float())
    )
    assert kept == pytest.approx(1.0, abs=0.1)
    assert lost < 0.8


def _fidelity_of_shards() -> tuple[float, float]:
    """Of weights of which rank 0 has lost the low bits of its half; and of them on one rank."""
    ranks, generator = join(), torch.Generator().manual_seed(0)
    weights = list(torch.randn(2, 1000, generator=generator))
    weights[0] = weights[0].bfloat16().float()
    epsilon = list(torch.randn(2, 1000, generator=generator) * 1e-3)

    def fidelity(part: slice, group: torch.distributed.ProcessGroup | None) -> float:
        return float(
            perturbation_fidelity(
                weights[part],
                epsilon[part],
                compute=torch.bfloat16,
                group=group,
                device=ranks.device,
            )
        )

    return fidelity(slice(ranks.rank, ranks.rank + 1), ranks.world), fidelity(slice(None), None)


def test_the_fidelity_of_shards_is_that_of_the_whole(on_ranks: OnRanks) -> None:
    for of_shards, whole in on_ranks(2, _fidelity_of_shards):
        assert of_shards == pytest.approx(whole, rel=1e-12)


@pytest.fixture(scope="module")
def deepspeed_is_there() -> None:
    """DeepSpeed's scaler asks for its rank before it says something."""
    import deepspeed

    private_api.prepare_process()
    join().process_group_of(1)
    deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False, verbose=False)


@pytest.mark.usefixtures("deepspeed_is_there")
@given(
    overflows=st.lists(st.booleans(), max_size=30),
    window=st.integers(1, 4),
    hysteresis=st.integers(1, 3),
    consecutive=st.booleans(),
)
def test_the_loss_scale_follows_deepspeeds_rule(
    overflows: list[bool], window: int, hysteresis: int, consecutive: bool
) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    config = settings(micro_batches=4, precision="float16")
    config["training"] = {
        "loss_scale": {
            "initial_power": 4,
            "window": window,
            "hysteresis": hysteresis,
            "consecutive_hysteresis": consecutive,
            "min": 2.0,
        }
    }
    scale = LossScale.of(load_config(config), device=torch.device("cpu"))
    assert scale is not None
    rule = DynamicLossScaler(
        init_scale=16,
        scale_window=window,
        min_scale=2.0,
        delayed_shift=hysteresis,
        consecutive_hysteresis=consecutive,
        raise_error_at_min_scale=False,
    )
    for overflow in overflows:
        scale.update(torch.tensor(overflow))
        rule.update_scale(overflow)
        assert scale.counters()["loss_scale"] == rule.cur_scale


def test_a_static_loss_scale_stays() -> None:
    config = settings(micro_batches=4, precision="float16")
    config["training"] = {"loss_scale": {"static": 64}}
    scale = LossScale.of(load_config(config), device=torch.device("cpu"))
    assert scale is not None
    scale.update(torch.tensor(True))
    assert scale.counters()["loss_scale"] == 64
