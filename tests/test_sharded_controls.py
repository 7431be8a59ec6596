"""Known silent failures of the backends, put in on purpose: the reference has to notice each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from engine_models import cross_entropy, mini_batch
from engine_runs import (
    Outcome,
    Run,
    engine_for,
    outcome_of,
    own_part,
    relative_difference,
    settings,
)
from faults import replaced
from layouts import LAYOUTS
from rank_pool import OnRanks, RankFailedError
from references import reference_for
from saved_state import Held

import msam_scale.initialization as initialization
from msam_scale.sharding import fsdp
from msam_scale.sharding.fsdp import FullySharding
from msam_scale.sharding.norms import square_sum


def _zero(name: str, value: Any) -> AbstractContextManager[None]:
    from msam_scale.sharding.zero import private_api

    return replaced(private_api, name, value)


def _nothing_replaced() -> AbstractContextManager[None]:
    return replaced(fsdp, "_swap", fsdp._swap)


def _fsdp_data_assignment() -> AbstractContextManager[None]:
    """`p.data =` on a DTensor, as the most used SAM implementation undoes its ascent."""

    @contextmanager
    def perturbed(sharding: FullySharding) -> Iterator[None]:
        before = [parameter.data.clone() for parameter in sharding._parameters]
        with torch.no_grad():
            for shard, epsilon in zip(
                sharding._shards, sharding.ascent_gradient.views, strict=True
            ):
                shard.add_(epsilon)
        yield
        for parameter, old in zip(sharding._parameters, before, strict=True):
            parameter.data = old

    return replaced(FullySharding, "perturbed", perturbed)


def _fsdp_local_norm() -> AbstractContextManager[None]:
    return replaced(FullySharding, "square_sum", lambda sharding, flat: square_sum(flat))


def _fsdp_average() -> AbstractContextManager[None]:
    """FSDP2's own division by the number of ranks."""
    from torch.distributed.fsdp import FSDPModule

    return replaced(FSDPModule, "set_gradient_divide_factor", lambda module, factor: None)


def _fsdp_unused_left_out() -> AbstractContextManager[None]:
    """FSDP2's default: a rank sends no gradient for what its chunk has left unused."""
    from torch.distributed.fsdp import FSDPModule

    return replaced(FSDPModule, "set_reduce_scatter_unused_params", lambda module, unused: None)


def _fsdp_stale_root() -> AbstractContextManager[None]:
    return replaced(FullySharding, "_reshard", lambda sharding: None)


def _zero3_stale_persistent() -> AbstractContextManager[None]:
    return _zero("release_gathered", lambda engine: None)


def _zero3_no_reset() -> AbstractContextManager[None]:
    return _zero("start_accumulating", lambda engine: None)


def _zero3_unused_not_cleared() -> AbstractContextManager[None]:
    """DeepSpeed's own reset, which counts on a backward to write every gradient."""
    return _zero("start_accumulating", lambda engine: engine.optimizer.zero_grad())


def _zero3_local_norm() -> AbstractContextManager[None]:
    from msam_scale.sharding.zero.partitioned_parameters import ParameterPartitioning

    return replaced(ParameterPartitioning, "square_sum", lambda sharding, flat: square_sum(flat))


def _zero12_reduces_pieces_of_buckets() -> AbstractContextManager[None]:
    """The accumulator's own views given to DeepSpeed, which points them elsewhere."""
    from msam_scale.sharding.zero.partitioned_optimizer import OptimizerPartitioning

    original = OptimizerPartitioning._install

    def install(sharding: Any, gradients: Any) -> None:
        ours = {view.data_ptr() for view in sharding._accumulator.views}
        if all(gradient.data_ptr() in ours for gradient in gradients):
            gradients = sharding._descent_gradients
        original(sharding, gradients)

    return replaced(OptimizerPartitioning, "_install", install)


# By (layout, ranks, fault); the last element says whether to train, predict and go back before.
FAULTS: dict[str, tuple[str, int, Callable[[], AbstractContextManager[None]], bool]] = {
    "FSDP, nothing": ("FSDP", 2, _nothing_replaced, True),
    "FSDP, p.data = on a DTensor": ("FSDP", 2, _fsdp_data_assignment, False),
    "FSDP, a local norm": ("FSDP", 2, _fsdp_local_norm, False),
    "FSDP, averages for sums": ("FSDP", 2, _fsdp_average, False),
    "ZeRO-1, views given away": ("ZeRO-1", 2, _zero12_reduces_pieces_of_buckets, False),
    "ZeRO-3, nothing": ("ZeRO-3", 2, _nothing_replaced, True),
    "ZeRO-3, stale persistent parameters": ("ZeRO-3", 2, _zero3_stale_persistent, False),
    "ZeRO-3, no reset between passes": ("ZeRO-3", 2, _zero3_no_reset, False),
    "ZeRO-3, an unused branch not cleared": ("ZeRO-3", 2, _zero3_unused_not_cleared, False),
    "ZeRO-3, a local norm": ("ZeRO-3", 2, _zero3_local_norm, False),
}


def _broken_outcome(fault: str, run: Run, *, returns: bool) -> Outcome:
    no_self_test = replaced(initialization, "check_sharding", lambda *_, **__: None)
    with FAULTS[fault][2](), no_self_test:
        if not returns:
            return outcome_of(run)
        engine = engine_for(run)
        dtype = torch.float64 if run.config["precision"] == "float64" else torch.float32
        start = engine.full_state_dict()
        engine.train_step(own_part(engine, mini_batch(7, dtype=dtype)))
        with torch.no_grad():
            engine.predict(mini_batch(9, dtype=dtype)[0])
        engine._sharding.load(Held(start), Held({}))  # all the way back
        engine.num_steps_done = 0
        for step in range(run.steps):
            engine.train_step(own_part(engine, mini_batch(step, dtype=dtype)))
        return Outcome(state=engine.full_state_dict())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_silent_failure_is_far_from_the_reference(fault: str, on_ranks: OnRanks) -> None:
    row, size, _, returns = FAULTS[fault]
    layout = LAYOUTS[row]
    config = settings(
        micro_batches=4, chunk=3, clip_norm=0.3, precision=layout.precision, **layout.sharding
    )
    model = "odd, all of it used" if layout.same_modules else "odd"
    outcome = on_ranks(size, _broken_outcome, fault, Run(config, model=model), returns=returns)[0]
    reference = reference_for("odd", 4, clip_norm=0.3)
    error = relative_difference(outcome.state, expected=reference.state, start=reference.start)
    if fault.endswith("nothing"):
        assert error < 1e-5
    else:
        assert not error < 1e-3


def _predictions_around_an_error(config: dict[str, Any], *, broken: bool) -> bool:
    """Whether predictions are as before after the forward at w + ε has raised."""
    calls: list[int] = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        loss = cross_entropy(model, batch)
        calls.append(len(calls))
        if calls[-1] == 1:
            raise ArithmeticError
        return loss

    with _fsdp_stale_root() if broken else _nothing_replaced():
        engine = engine_for(Run(config, model="dropout_vit"), loss_fn=loss_fn)
        engine.eval()
        images, _ = mini_batch(9, dtype=torch.float32)
        with torch.no_grad():
            before = engine.predict(images)
        with pytest.raises(ArithmeticError):
            engine.train_step(own_part(engine, mini_batch(0, dtype=torch.float32)))
        with torch.no_grad():
            return bool(engine.predict(images).equal(before))


@pytest.mark.parametrize("row", LAYOUTS)
def test_an_error_at_the_perturbed_weights_leaves_predictions(row: str, on_ranks: OnRanks) -> None:
    layout = LAYOUTS[row]
    size = 4 if "2x2" in row else 2
    config = settings(micro_batches=4, precision="float32", **layout.sharding)
    assert all(on_ranks(size, _predictions_around_an_error, config, broken=False))
    if row == "FSDP":
        assert not any(on_ranks(size, _predictions_around_an_error, config, broken=True))


@pytest.mark.parametrize(
    "fault", ["FSDP, averages for sums", "FSDP, p.data = on a DTensor", "ZeRO-3, a local norm"]
)
def test_the_self_test_stops_before_training(fault: str, on_ranks: OnRanks) -> None:
    assert all(on_ranks(2, _self_test_stops, fault))


def _self_test_stops(fault: str) -> bool:
    from msam_scale import self_test

    layout = LAYOUTS[FAULTS[fault][0]]
    config = settings(micro_batches=4, precision=layout.precision, **layout.sharding)
    self_test._check.cache_clear()
    try:
        with FAULTS[fault][2](), pytest.raises(RuntimeError, match=r"does not compute mSAM.*torch"):
            engine_for(Run(config))
    finally:
        self_test._check.cache_clear()
    return True


def _without_unused_gradients(config: dict[str, Any]) -> None:
    no_self_test = replaced(initialization, "check_sharding", lambda *_, **__: None)
    with _fsdp_unused_left_out(), no_self_test:
        outcome_of(Run(config, steps=1))


def test_fsdps_default_for_unused_parameters_ends_the_run(on_ranks: OnRanks) -> None:
    """Ranks send gradients of different sizes; the trajectories have such chunks and go through."""
    config = settings(micro_batches=4, chunk=3, **LAYOUTS["FSDP"].sharding)
    with pytest.raises(RankFailedError, match=r"reduce_scatter|the process ended"):
        on_ranks(2, _without_unused_gradients, config, timeout=60.0)
