"""What is DeepSpeed's own under ZeRO: its options, parameter groups, hpZ, and what it leaves."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any

import deepspeed
import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import ADAMW, Run, engine_for, outcome_of, own_part, settings
from engine_runs import relative_difference as difference
from rank_pool import OnRanks
from references import reference_for
from saved_state import Held, optimizer_state_of
from torch.overrides import TorchFunctionMode

from msam_scale.engine import Engine
from msam_scale.errors import UserError
from msam_scale.ranks import join, leave
from msam_scale.sharding.zero.start import check_secondary_shards

MODEL = "odd, all of it used"
STEPS = 3


def _config(strategy: str, *, options: dict[str, Any] | None = None, **over: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"micro_batches": 4, "chunk": 4, "clip_norm": 0.3}
    arguments |= {"precision": "float32", "strategy": strategy} | over
    if options is not None:
        arguments["deepspeed"] = {"zero_optimization": options}
    return settings(**arguments)


def _train_step(engine: Engine, step: int) -> Any:
    return engine.train_step(own_part(engine, mini_batch(step, dtype=torch.float32)))


# Options that change how, and never what; several at a time.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero1, small buckets, no reduce-scatter": (
        "zero1",
        {"reduce_bucket_size": 50, "allgather_bucket_size": 50, "reduce_scatter": False},
    ),
    "zero2, small buckets": ("zero2", {"reduce_bucket_size": 50, "overlap_comm": True}),
    "zero2, rank by rank, not contiguous": (
        "zero2",
        {"use_multi_rank_bucket_allreduce": False, "contiguous_gradients": False},
    ),
    "zero3, sub-groups, small buckets, nothing persistent, no prefetch": (
        "zero3",
        {
            "sub_group_size": 50,
            "reduce_bucket_size": 50,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
        },
    ),
    "zero3, some persistent, no overlap, not contiguous, no reduce-scatter": (
        "zero3",
        {
            "stage3_param_persistence_threshold": 300,
            "overlap_comm": False,
            "contiguous_gradients": False,
            "reduce_scatter": False,
        },
    ),
    "zero3, all-reduced weights, aligned, parameters offloaded": (
        "zero3",
        {
            "stage3_use_all_reduce_for_fetch_params": True,
            "parameter_alignment": True,
            "offload_param": {"device": "cpu"},
        },
    ),
}


@cache
def _single_process_error() -> float:
    reference = reference_for("odd", 4, optimizer="adamw", clip_norm=0.3, steps=STEPS)
    config = _config("replicated", optimizer=ADAMW)
    alone = outcome_of(Run(config, model=MODEL, steps=STEPS)).state
    return difference(alone, expected=reference.state, start=reference.start)


@pytest.mark.layouts
@pytest.mark.parametrize("name", OPTIONS)
def test_options_leave_the_trajectory(name: str, on_ranks: OnRanks) -> None:
    strategy, options = OPTIONS[name]
    config = _config(strategy, options=options, optimizer=ADAMW)
    state = on_ranks(2, outcome_of, Run(config, model=MODEL, steps=STEPS))[0].state
    reference = reference_for("odd", 4, optimizer="adamw", clip_norm=0.3, steps=STEPS)
    error = difference(state, expected=reference.state, start=reference.start)
    assert error < max(1e-5, 5 * _single_process_error())


def _two_groups(parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": parameters[::2]},
        {"params": parameters[1::2], "momentum": 0.5, "lr": 0.1},
    ]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def _run_of_two_groups(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Weights and optimizer state; and whether they go round into another engine."""
    engine = engine_for(Run(config, model=MODEL), optimizer=_two_groups)
    for step in range(STEPS):
        _train_step(engine, step)
    state, optimizer_state = engine.full_state_dict(), optimizer_state_of(engine)
    _train_step(engine, STEPS)
    gone_on = engine.full_state_dict()
    engine._sharding.load(Held(state), optimizer_state)
    engine.num_steps_done = STEPS
    _train_step(engine, STEPS)
    again = engine.full_state_dict()
    return state, dict(optimizer_state), all(again[n].equal(gone_on[n]) for n in gone_on)


@pytest.mark.layouts
@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_parameter_groups_keep_their_settings_and_their_state(
    strategy: str, on_ranks: OnRanks
) -> None:
    expected = _run_of_two_groups(_config("replicated"))
    state, optimizer_state, goes_round = on_ranks(2, _run_of_two_groups, _config(strategy))[0]
    start = build_model(MODEL).state_dict()
    assert difference(state, expected=expected[0], start=start) < 5e-5
    assert optimizer_state.keys() == expected[1].keys()
    for name, momentum in expected[1].items():
        torch.testing.assert_close(optimizer_state[name], momentum, rtol=1e-3, atol=1e-5)
    assert goes_round


# Secondary shards (hpZ).


def _error_after_loading(config: dict[str, Any]) -> float:
    """The relative error of predictions with loaded weights, those that are not trained as well."""
    engine = engine_for(Run(config, model=MODEL))
    _train_step(engine, 0)
    generator = torch.Generator().manual_seed(5)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.3
        for name, tensor in engine.full_state_dict().items()
    }
    weights["tied.weight"] = weights["mix.weight"]
    engine._sharding.load(Held(weights), Held({}))
    images, _ = mini_batch(9, dtype=torch.float32)
    expected = build_model(MODEL)
    expected.load_state_dict(weights)
    with torch.no_grad():
        found, right = engine.predict(images), expected(images)
    return float((found - right).abs().max() / right.abs().max())


def test_loaded_weights_reach_secondary_shards(on_ranks: OnRanks) -> None:
    options = {"zero_hpz_partition_size": 2, "stage3_param_persistence_threshold": 0}
    assert max(on_ranks(2, _error_after_loading, _config("zero3", options=options))) < 1e-4


def test_secondary_shards_fit_into_shard_groups() -> None:
    def check(size: int) -> None:
        settings = {"zero_optimization": {"zero_hpz_partition_size": size}}
        check_secondary_shards(settings, shard_group_size=2)

    check(1)
    check(2)
    with pytest.raises(UserError, match=r"partition_size: 4 does not divide the 2.*: 1, 2"):
        check(4)


# What DeepSpeed leaves in a process.


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_engine_that_nobody_holds_lets_go_of_its_buckets(precision: str) -> None:
    engine = engine_for(Run(_config("zero3", precision=precision), model=MODEL))
    _train_step(engine, 0)
    buckets = engine._sharding._engine.optimizer.ipg_buckets  # type: ignore[attr-defined]
    assert any(bucket.buffer is not None for bucket in buckets.values())
    del engine
    gc.collect()
    assert not buckets


class _HostReads(TorchFunctionMode):
    """Notes where DeepSpeed, or what drives it, waits for a value of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(  # type: ignore[override]
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") in ("__bool__", "__float__", "__int__", "item"):
            frames = traceback.extract_stack()[:-1]
            if any(frame.name == "apply" for frame in frames):
                self.places.append(f"{frames[-1].filename}:{frames[-1].lineno}")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_stages_1_and_2_skip_a_step_without_asking_the_host(strategy: str) -> None:
    engine = engine_for(Run(_config(strategy), model=MODEL))
    _train_step(engine, 0)
    images, labels = mini_batch(1, dtype=torch.float32)
    bad = images.masked_fill(torch.arange(len(images)).view(-1, 1, 1, 1) == 3, float("nan"))
    before = engine.full_state_dict()
    for inputs, skipped in ((bad, True), (images, False)):
        with _HostReads() as reads:
            step = engine.train_step((inputs, labels))
        assert reads.places == []
        assert step.skipped == skipped
        after = engine.full_state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before) == skipped


def _timeouts() -> list[timedelta]:
    """Of groups that are made when the ranks have joined, by us and by DeepSpeed."""
    ranks = join(timeout=timedelta(seconds=90))
    engine_for(Run(_config("zero1"), model=MODEL))
    groups = [ranks.apart("a test").world, deepspeed.comm.new_group(ranks=[0, 1])]
    cpu = torch.device("cpu")
    return [group._get_backend(cpu).options._timeout for group in groups]


def test_every_group_has_the_timeout_of_the_run(on_ranks: OnRanks) -> None:
    assert on_ranks(2, _timeouts) == [[timedelta(seconds=90)] * 2] * 2


def test_a_process_may_leave_its_group_and_join_another() -> None:
    for _ in range(2):
        engine = engine_for(Run(_config("zero2"), model=MODEL))
        assert not _train_step(engine, 0).skipped
        del engine
        leave()


def test_torch_has_its_linear_back_when_the_engine_is_gone() -> None:
    gc.collect()
    original = torch.nn.functional.linear
    run = Run(settings(micro_batches=2, precision="float32", strategy="zero3"))
    engines = [engine_for(run), engine_for(run)]
    assert torch.nn.functional.linear is not original
    engines.pop()
    gc.collect()
    assert torch.nn.functional.linear is not original, "the other engine uses DeepSpeed's"
    engines.pop()
    gc.collect()
    assert torch.nn.functional.linear is original
