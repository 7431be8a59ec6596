"""What is DeepSpeed's own under ZeRO: narrow shards, its loss scaler, offload, options, hpZ."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import ADAMW, SGD, Run, engine_for, outcome_of, own_part, settings
from engine_runs import relative_difference as difference
from faults import replaced
from rank_pool import OnRanks, RankFailedError
from reference import Reference, reference_run
from references import reference_for
from saved_state import Held, optimizer_state_of

from msam_scale.engine import Engine
from msam_scale.ranks import leave

MODEL = "odd, all of it used"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
State = dict[str, torch.Tensor]


@contextmanager
def _float16_on_a_cpu() -> Iterator[None]:
    """DeepSpeed asks oneDNN for it, which few CPUs have; torch computes it on all."""
    from deepspeed.accelerator import get_accelerator

    with replaced(type(get_accelerator()), "is_fp16_supported", lambda accelerator: True):
        yield


def _config(strategy: str, *, options: dict[str, Any] | None = None, **over: Any) -> dict[str, Any]:
    scale = over.pop("loss_scale", None)
    arguments: dict[str, Any] = {"micro_batches": 4, "chunk": 4, "clip_norm": 0.3}
    arguments |= {"precision": "float32", "strategy": strategy} | over
    if options is not None:
        arguments["deepspeed"] = {"zero_optimization": options}
    config = settings(**arguments)
    return config if scale is None else config | {"training": {"loss_scale": scale}}


def _train_step(engine: Engine, step: int) -> Any:
    return engine.train_step(own_part(engine, mini_batch(step, dtype=torch.float32)))


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


# What a forward gathers, in bfloat16 and float16.


def _narrow_run(config: dict[str, Any]) -> tuple[set[torch.dtype], set[torch.dtype], Any, State]:
    with _float16_on_a_cpu():
        gathered: set[torch.dtype] = set()

        def loss_fn(model: Any, batch: Any) -> torch.Tensor:
            loss = cross_entropy(model, batch)
            gathered.update(parameter.dtype for parameter in model.parameters())
            return loss

        engine = engine_for(Run(config, model=MODEL), loss_fn=loss_fn)
        for step in range(10):
            assert not _train_step(engine, step).skipped
        sharding: Any = engine._sharding
        shards = {shard.dtype for shard in sharding._computing}
        return shards, gathered, sharding.counters(), engine.full_state_dict()


@cache
def _simulated(precision: str) -> Reference:
    """A single process that keeps float32 weights, and computes with all of them rounded."""
    dtype, model = _DTYPES[precision], build_model(MODEL)
    computes = copy.deepcopy(model)

    def narrow(images: torch.Tensor) -> torch.Tensor:
        weights = {name: weight.to(dtype) for name, weight in model.named_parameters()}
        with torch.autocast("cpu", dtype=dtype):
            logits: torch.Tensor = torch.func.functional_call(
                computes, weights, (images.to(dtype),)
            )
        return logits.float()

    model.forward = narrow
    return reference_run(
        model,
        mini_batch=lambda step: mini_batch(step, dtype=torch.float32),
        steps=10,
        micro_batches=4,
        rho=0.1,
        build_optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=0.05, momentum=0.9, weight_decay=0.01
        ),
        clip_norm=0.3,
        seed=7,
    )


@pytest.mark.parametrize(("size", "shard_group"), [(2, None), (4, 2)], ids=["2", "2x2"])
@pytest.mark.parametrize("precision", _DTYPES)
def test_zero3_gathers_and_computes_in_the_narrow_type(
    precision: str, size: int, shard_group: int | None, on_ranks: OnRanks
) -> None:
    scale = {"initial_power": 8} if precision == "float16" else None
    config = _config("zero3", precision=precision, shard_group=shard_group, loss_scale=scale)
    shards, gathered, counters, state = on_ranks(size, _narrow_run, config)[0]
    assert shards == gathered == {_DTYPES[precision]}
    assert counters.get("loss_scale") == (256.0 if precision == "float16" else None)
    exact, simulated = reference_for("odd", 4, clip_norm=0.3), _simulated(precision)
    level = difference(simulated.state, expected=exact.state, start=exact.start)
    assert difference(state, expected=exact.state, start=exact.start) < 1.5 * level


# Steps that are left out.


def _left_out(config: dict[str, Any], bad_pass: int) -> list[tuple[bool, float]]:
    """Of four steps whether each was skipped, and the loss scale; the second overflows."""
    calls: list[int] = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        calls.append(len(calls))
        loss = cross_entropy(model, batch)
        last = engine.ranks.rank == engine.ranks.size - 1
        return loss * float("inf") if number == 1 and last and calls[-1] % 2 == bad_pass else loss

    with _float16_on_a_cpu():
        engine = engine_for(Run(config, model=MODEL), loss_fn=loss_fn)
        seen = []
        for number in range(4):
            before = engine.full_state_dict(), dict(optimizer_state_of(engine))
            skipped = _train_step(engine, number).skipped
            after = engine.full_state_dict(), dict(optimizer_state_of(engine))
            assert _same(before[0], after[0]) == skipped
            assert _same(before[1], after[1]) == skipped
            seen.append((skipped, engine._sharding.counters().get("loss_scale", 1.0)))
        return seen


@pytest.mark.parametrize("bad_pass", [0, 1], ids=["ascent", "descent"])
@pytest.mark.parametrize("offload", [False, True], ids=["", "offloaded"])
def test_deepspeeds_loss_scale_falls_with_a_step_left_out(
    offload: bool, bad_pass: int, on_ranks: OnRanks
) -> None:
    scale = {"initial_power": 8, "hysteresis": 1}
    config = _config(
        "zero3", precision="float16", chunk=None, optimizer=ADAMW, offload=offload, loss_scale=scale
    )
    expected = [(False, 256.0), (True, 128.0), (False, 128.0), (False, 128.0)]
    assert on_ranks(2, _left_out, config, bad_pass) == [expected] * 2


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_an_offloaded_run_goes_on_after_a_step_left_out(strategy: str, on_ranks: OnRanks) -> None:
    config = _config(strategy, chunk=None, optimizer=ADAMW, offload=True)
    expected = [(False, 1.0), (True, 1.0), (False, 1.0), (False, 1.0)]
    assert on_ranks(2, _left_out, config, 1) == [expected] * 2


def _padding_keeps_its_nan(config: dict[str, Any]) -> list[tuple[bool, float]]:
    from msam_scale.sharding.zero import private_api

    def drop(engine: Any) -> None:
        engine.optimizer.zero_grad(set_to_none=True)
        engine.optimizer.reset_cpu_buffers()

    with replaced(private_api, "drop_reduced_gradients", drop):
        return _left_out(config, 1)


def test_offloaded_padding_that_is_not_cleared_is_noticed(on_ranks: OnRanks) -> None:
    config = _config("zero1", chunk=None, optimizer=ADAMW, offload=True)
    skipped = [skipped for skipped, _ in on_ranks(2, _padding_keeps_its_nan, config)[0]]
    assert skipped == [False, True, True, True]


# Options that change how, and never what.

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero1, small buckets": ("zero1", {"reduce_bucket_size": 50, "allgather_bucket_size": 50}),
    "zero1, no reduce-scatter": ("zero1", {"reduce_scatter": False}),
    "zero2, small buckets": ("zero2", {"reduce_bucket_size": 50, "overlap_comm": True}),
    "zero2, rank by rank": ("zero2", {"use_multi_rank_bucket_allreduce": False}),
    "zero2, not contiguous": ("zero2", {"contiguous_gradients": False}),
    "zero3, sub-groups": ("zero3", {"sub_group_size": 50}),
    "zero3, small buckets": ("zero3", {"reduce_bucket_size": 50}),
    "zero3, no reduce-scatter": ("zero3", {"reduce_scatter": False}),
    "zero3, all-reduced weights": ("zero3", {"stage3_use_all_reduce_for_fetch_params": True}),
    "zero3, aligned": ("zero3", {"parameter_alignment": True}),
    "zero3, optimizer offloaded": ("zero3", {"offload_optimizer": {"device": "cpu"}}),
    "zero3, parameters offloaded": ("zero3", {"offload_param": {"device": "cpu"}}),
    "zero3, offloaded sub-groups": (
        "zero3",
        {"offload_optimizer": {"device": "cpu"}, "sub_group_size": 50},
    ),
}


@cache
def _replicated(optimizer: str) -> State:
    section = SGD if optimizer == "sgd" else ADAMW
    return outcome_of(Run(_config("replicated", optimizer=section), model=MODEL, steps=4)).state


@pytest.mark.parametrize("name", OPTIONS)
def test_options_leave_the_trajectory(name: str, on_ranks: OnRanks) -> None:
    strategy, options = OPTIONS[name]
    config = _config(strategy, options=options, optimizer=ADAMW)
    state = on_ranks(2, outcome_of, Run(config, model=MODEL, steps=4))[0].state
    start = build_model(MODEL).state_dict()
    assert difference(state, expected=_replicated("adamw"), start=start) < 1e-5


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_offload_leaves_the_trajectory(strategy: str, on_ranks: OnRanks) -> None:
    config = _config(strategy, offload=True)
    state = on_ranks(2, outcome_of, Run(config, model=MODEL, steps=4))[0].state
    start = build_model(MODEL).state_dict()
    assert difference(state, expected=_replicated("sgd"), start=start) < 1e-5


def _two_groups(parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": parameters[::2]},
        {"params": parameters[1::2], "momentum": 0.5, "lr": 0.1},
    ]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def _run_of_two_groups(config: dict[str, Any]) -> tuple[State, State]:
    engine = engine_for(Run(config, model=MODEL), optimizer=_two_groups)
    for step in range(4):
        _train_step(engine, step)
    return engine.full_state_dict(), dict(optimizer_state_of(engine))


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_parameter_groups_keep_their_settings_and_their_state(
    strategy: str, on_ranks: OnRanks
) -> None:
    expected = _run_of_two_groups(_config("replicated"))
    state, optimizer_state = on_ranks(2, _run_of_two_groups, _config(strategy))[0]
    start = build_model(MODEL).state_dict()
    assert difference(state, expected=expected[0], start=start) < 1e-5
    assert optimizer_state.keys() == expected[1].keys()
    for name, momentum in expected[1].items():
        torch.testing.assert_close(optimizer_state[name], momentum, rtol=1e-4, atol=1e-6)


def _round_trip(config: dict[str, Any]) -> bool:
    """Whether a fresh engine is, and goes on, as the one whose state it has taken."""
    engines = [engine_for(Run(config, model=MODEL)) for _ in range(2)]
    for step in range(3):
        _train_step(engines[0], step)
    weights = engines[0].full_state_dict()
    engines[1]._sharding.load(Held(weights), optimizer_state_of(engines[0]))
    engines[1].num_steps_done = 3
    alike = _same(weights, engines[1].full_state_dict())
    for engine in engines:
        _train_step(engine, 3)
    return alike and _same(engines[0].full_state_dict(), engines[1].full_state_dict())


@pytest.mark.parametrize(
    "config",
    [
        _config("zero2", optimizer=ADAMW, offload=True),
        _config("zero3", optimizer=ADAMW, offload=True),
        _config("zero3", optimizer=ADAMW, options={"sub_group_size": 50}),
        _config("zero3", optimizer=ADAMW, precision="bfloat16"),
    ],
    ids=["zero2, offloaded", "zero3, offloaded", "zero3, sub-groups", "zero3, bfloat16"],
)
def test_state_goes_round_bit_for_bit(config: dict[str, Any], on_ranks: OnRanks) -> None:
    assert all(on_ranks(2, _round_trip, config))


# Secondary shards (hpZ).


def _secondary_kept() -> AbstractContextManager[None]:
    from msam_scale.sharding.zero import private_api

    def write(parameter: Any, values: torch.Tensor) -> None:
        parameter.ds_tensor.copy_(values)

    return replaced(private_api, "set_own_shard", write)


def _error_after_loading(config: dict[str, Any], *, broken: bool) -> float:
    """The relative error of predictions with loaded weights, those that are not trained as well."""
    engine = engine_for(Run(config, model=MODEL))
    _train_step(engine, 0)
    generator = torch.Generator().manual_seed(5)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.3
        for name, tensor in engine.full_state_dict().items()
    }
    weights["tied.weight"] = weights["mix.weight"]
    with _secondary_kept() if broken else nullcontext():
        engine._sharding.load(Held(weights), Held({}))
    images, _ = mini_batch(9, dtype=torch.float32)
    expected = build_model(MODEL)
    expected.load_state_dict(weights)
    with torch.no_grad():
        found, right = engine.predict(images), expected(images)
    return float((found - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("threshold", [0, 100_000], ids=["gathered anew", "kept gathered"])
def test_loaded_weights_reach_secondary_shards(threshold: int, on_ranks: OnRanks) -> None:
    options = {"zero_hpz_partition_size": 2, "stage3_param_persistence_threshold": threshold}
    config = _config("zero3", options=options)
    assert max(on_ranks(2, _error_after_loading, config, broken=False)) < 1e-5
    if threshold == 0:
        assert min(on_ranks(2, _error_after_loading, config, broken=True)) > 1e-3


def test_secondary_shards_fit_into_shard_groups(on_ranks: OnRanks) -> None:
    def config(secondary: int) -> dict[str, Any]:
        return _config("zero3", shard_group=2, options={"zero_hpz_partition_size": secondary})

    state = on_ranks(4, outcome_of, Run(config(2), model=MODEL, steps=4))[0].state
    start = build_model(MODEL).state_dict()
    assert difference(state, expected=_replicated("sgd"), start=start) < 1e-5
    with pytest.raises(RankFailedError, match=r"partition_size: 4 does not divide the 2.*: 1, 2"):
        on_ranks(4, engine_for, Run(config(4), model=MODEL))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_engine_that_nobody_holds_lets_go_of_its_buckets(precision: str) -> None:
    engine = engine_for(Run(_config("zero3", precision=precision), model=MODEL))
    _train_step(engine, 0)
    buckets = engine._sharding._engine.optimizer.ipg_buckets  # type: ignore[attr-defined]
    assert any(bucket.buffer is not None for bucket in buckets.values())
    del engine
    gc.collect()
    assert not buckets


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
