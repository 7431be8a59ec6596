"""The average of the weights: right on every layout, and of no influence on the run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from engine_models import BATCH_SIZE, build_model, cross_entropy, mini_batch
from engine_runs import ADAMW, Run, engine_for, own_part, settings
from faults import replaced
from rank_pool import OnRanks
from saved_state import optimizer_state_of
from timm.utils import ModelEmaV3
from torch import nn

from msam_scale.engine import Engine
from msam_scale.errors import UserError
from msam_scale.initialization import initialize
from msam_scale.weight_average import WeightAverage

State = dict[str, torch.Tensor]

DECAY = 0.8
BAD_STEP = 2
STEPS = 5
MODEL = "odd, all of it used"
# Of float32 weights of about 1, in the hundredths by which the average has moved.
BOUNDS = {"float64": 1e-12, "float32": 1e-5}
LAYOUTS: dict[str, dict[str, Any]] = {
    "replicated": {},
    "FSDP": {"strategy": "fsdp"},
    "FSDP in bfloat16, offloaded": {
        "strategy": "fsdp",
        "precision": "bfloat16",
        "offload": True,
    },
    "ZeRO-1": {"strategy": "zero1", "precision": "float32"},
    "ZeRO-2, offloaded": {"strategy": "zero2", "precision": "float32", "offload": True},
    "ZeRO-3": {"strategy": "zero3", "precision": "float32"},
    "ZeRO-3 in bfloat16, offloaded": {
        "strategy": "zero3",
        "precision": "bfloat16",
        "offload": True,
    },
}


@dataclass(frozen=True)
class Trace:
    """What became of a model: its state before the first and after each step, and the average."""

    states: list[State]
    average: State


def _config(*, ema: float | None = DECAY, **over: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"micro_batches": 4, "chunk": 4, "optimizer": ADAMW}
    return settings(**{**arguments, **over}) | {"training": {"ema": ema}}


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def _dtype(config: dict[str, Any]) -> torch.dtype:
    return torch.float64 if config["precision"] == "float64" else torch.float32


def _step(engine: Engine, step: int, *, dtype: torch.dtype) -> None:
    images, labels = mini_batch(step, dtype=dtype)
    if step == BAD_STEP:  # one sample, which the last rank supplies
        images[BATCH_SIZE - 1, 0, 0, 0] = float("nan")
    assert engine.train_step(own_part(engine, (images, labels))).skipped == (step == BAD_STEP)


def _trace(config: dict[str, Any], model: str) -> Trace:
    engine = engine_for(Run(config, model=model))
    states = [engine.full_state_dict()]
    for step in range(STEPS):
        before = engine.full_averaged_state_dict() if step == BAD_STEP else {}
        _step(engine, step, dtype=_dtype(config))
        states.append(engine.full_state_dict())
        assert step != BAD_STEP or _same(before, engine.full_averaged_state_dict())
    return Trace(states=states, average=engine.full_averaged_state_dict())


def _expected(trace: Trace, *, decay: float = DECAY) -> State:
    """The definition, in float64: of every state but the one that a skipped step has left."""
    averages = {name: tensor.double() for name, tensor in trace.states[0].items()}
    for step in range(STEPS):
        if step == BAD_STEP:
            continue
        for name, tensor in trace.states[step + 1].items():
            averages[name] = decay * averages[name] + (1 - decay) * tensor.double()
    return {
        name: average if trace.states[0][name].is_floating_point() else trace.states[-1][name]
        for name, average in averages.items()
    }


def _error(state: State, *, expected: State, start: State) -> float:
    """The largest difference, in the largest distance that the average has gone."""
    assert state.keys() == expected.keys()

    def most(one: State, other: State) -> float:
        return max(float((one[name] - other[name]).abs().max()) for name in one)

    return most(state, expected) / most(expected, start)


def _error_of(trace: Trace, *, decay: float = DECAY) -> float:
    expected = _expected(trace, decay=decay)
    return _error(trace.average, expected=expected, start=trace.states[0])


@cache
def _of_one_rank(precision: str) -> Trace:
    return _trace(_config(precision=precision), MODEL)


@pytest.mark.parametrize("name", ["replicated", "FSDP", "ZeRO-1", "ZeRO-3"])
def test_every_layout_has_the_same_average(name: str, on_ranks: OnRanks) -> None:
    config = _config(**LAYOUTS[name])
    bound = BOUNDS[config["precision"]]
    for trace in on_ranks(2, _trace, config, MODEL):
        assert _error_of(trace) < bound
        assert _error_of(trace, decay=DECAY + 1e-3) > 10 * bound, "another decay is noticed"
        alone = _of_one_rank(config["precision"])
        error = _error(trace.average, expected=alone.average, start=alone.states[0])
        assert error < {"float64": 1e-9, "float32": 1e-4}[config["precision"]]


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
def test_running_statistics_are_averaged_and_counts_are_the_models(
    strategy: str, on_ranks: OnRanks
) -> None:
    config = _config(norm_samples=4, strategy=strategy)
    trace = on_ranks(2, _trace, config, "wide_resnet")[0]
    counts = [name for name in trace.average if name.endswith("num_batches_tracked")]
    means = [name for name in trace.average if name.endswith("running_mean")]
    assert {int(trace.average[name]) for name in counts} == {STEPS - 1}
    assert not any(trace.average[name].equal(trace.states[-1][name]) for name in means)
    assert _error_of(trace) < 1e-12


def test_it_is_the_average_of_timm() -> None:
    config = _config(norm_samples=4)
    engine = engine_for(Run(config, model="wide_resnet"))
    plain = build_model("wide_resnet").double()
    plain.load_state_dict(engine.full_state_dict())
    averaged = ModelEmaV3(plain, decay=DECAY)
    for step in range(STEPS):
        _step(engine, step, dtype=torch.float64)
        if step != BAD_STEP:
            plain.load_state_dict(engine.full_state_dict())
            averaged.update(plain)
    state = engine.full_averaged_state_dict()
    for name, tensor in averaged.module.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-12, atol=1e-14)


def _with_its_skip_ignored(config: dict[str, Any]) -> bool:
    update = WeightAverage.update

    def always(average: WeightAverage, skip: torch.Tensor) -> None:
        update(average, torch.zeros_like(skip))

    with replaced(WeightAverage, "update", always):
        engine = engine_for(Run(config, model=MODEL))
        for step in range(BAD_STEP):
            _step(engine, step, dtype=torch.float64)
        before = engine.full_averaged_state_dict()
        _step(engine, BAD_STEP, dtype=torch.float64)
        return _same(before, engine.full_averaged_state_dict())


def test_an_average_that_follows_skipped_steps_is_noticed() -> None:
    assert not _with_its_skip_ignored(_config())


# Looking at it.


def _predictions(engine: Engine, *, dtype: torch.dtype) -> torch.Tensor:
    engine.eval()
    with torch.no_grad():
        predictions: torch.Tensor = engine.predict(mini_batch(9, dtype=dtype)[0])
    engine.train()
    return predictions


def _right_predictions(state: State, *, dtype: torch.dtype) -> torch.Tensor:
    model = build_model(MODEL).to(dtype)
    model.load_state_dict(state)
    with torch.no_grad():
        predictions: torch.Tensor = model(mini_batch(9, dtype=dtype)[0])
    return predictions


def _nothing_written() -> AbstractContextManager[None]:
    return replaced(WeightAverage, "_written", lambda average: None)


def _fails_after_a_forward(engine: Engine, *, dtype: torch.dtype) -> None:
    with engine.averaged_weights():
        _predictions(engine, dtype=dtype)
        raise ZeroDivisionError


def _looks_at_it(config: dict[str, Any], *, broken: bool = False) -> float:
    """The error of predictions with the average, in a run that is compared with one without it."""
    dtype = _dtype(config)
    engine = engine_for(Run(config, model=MODEL))
    plain = engine_for(Run({**config, "training": {}}, model=MODEL))
    assert plain.average is None
    with engine.averaged_weights():  # before any forward
        pass
    for step in range(3):
        _step(engine, step, dtype=dtype)
        _step(plain, step, dtype=dtype)
    before, averaged = engine.full_state_dict(), engine.full_averaged_state_dict()
    predictions = _predictions(engine, dtype=dtype)  # leaves parameters gathered
    with _nothing_written() if broken else nullcontext(), engine.averaged_weights():
        found = _predictions(engine, dtype=dtype)
        assert _same(engine.full_state_dict(), averaged)
        assert not _same(before, averaged)
        with pytest.raises(UserError, match="train_step does not work inside"):
            _step(engine, 3, dtype=dtype)
        with pytest.raises(UserError, match=r"averaged_weights\(\) does not work inside"):
            engine.full_averaged_state_dict()
        assert engine.average is not None
        with pytest.raises(UserError, match=r"copying the weights .* does not work inside"):
            engine.average.copy_from_weights()
    right = _right_predictions(averaged, dtype=dtype)
    error = float((found - right).abs().max() / (right - predictions).abs().max())
    if broken:
        return error

    with pytest.raises(ZeroDivisionError):
        _fails_after_a_forward(engine, dtype=dtype)
    assert _same(engine.full_state_dict(), before)
    assert _same(engine.full_averaged_state_dict(), averaged)
    assert _predictions(engine, dtype=dtype).equal(predictions)
    for step in range(3, STEPS):
        with engine.averaged_weights():
            _predictions(engine, dtype=dtype)
        _step(engine, step, dtype=dtype)
        _step(plain, step, dtype=dtype)
    assert _same(engine.full_state_dict(), plain.full_state_dict())
    optimizer_states = [optimizer_state_of(one) for one in (engine, plain)]
    assert _same(*optimizer_states)
    engine.average.copy_from_weights()
    assert _same(engine.full_averaged_state_dict(), engine.full_state_dict())
    return error


@pytest.mark.parametrize(
    "name",
    [
        "replicated",
        "FSDP",
        "FSDP in bfloat16, offloaded",
        "ZeRO-1",
        "ZeRO-2, offloaded",
        "ZeRO-3 in bfloat16, offloaded",
    ],
)
def test_training_goes_on_as_without_it(name: str, on_ranks: OnRanks) -> None:
    config = _config(**LAYOUTS[name])
    bound = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.5}[config["precision"]]
    assert max(on_ranks(2, _looks_at_it, config)) < bound


def test_forwards_that_are_left_with_the_old_weights_are_noticed(on_ranks: OnRanks) -> None:
    config = _config(**LAYOUTS["FSDP"])
    assert min(on_ranks(2, _looks_at_it, config, broken=True)) > 0.1


def test_without_a_decay_there_is_no_average() -> None:
    engine = engine_for(Run(_config(ema=None)))
    with pytest.raises(UserError, match=r"training\.ema: null .* such as 0\.9999"):
        engine.averaged_weights()
    with pytest.raises(UserError, match=r"training\.ema: null"):
        engine.full_averaged_state_dict()


class _Masked(nn.Module):
    """With buffers that have no average: one is infinite, one holds whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, 5)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("order", torch.arange(3 * 8 * 8), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.flatten(1)[:, self.order]) + self.mask[0]
        return logits


def test_buffers_without_an_average_stay_as_they_are() -> None:
    config = _config(micro_batches=1, chunk=None)
    engine = initialize(_Masked(), config=config, loss_fn=cross_entropy)
    for step in range(STEPS):
        _step(engine, step, dtype=torch.float64)
    state = engine.full_averaged_state_dict()
    assert state["mask"].tolist() == [0.0, float("-inf")]
    assert bool(state["head.weight"].isfinite().all())


def test_a_failure_halfway_puts_back_what_was_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    from msam_scale import weight_average

    engine = engine_for(Run(_config(), model=MODEL))
    _step(engine, 0, dtype=torch.float64)
    before, averaged = engine.full_state_dict(), engine.full_averaged_state_dict()
    exchange, calls = weight_average._exchange, [0]

    def fails_at_the_third(*pair: torch.Tensor, spare: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise MemoryError
        exchange(*pair, spare=spare)

    with monkeypatch.context() as patch:
        patch.setattr(weight_average, "_exchange", fails_at_the_third)
        with pytest.raises(MemoryError), engine.averaged_weights():
            pytest.fail("the block was entered")
    assert _same(engine.full_state_dict(), before)
    assert _same(engine.full_averaged_state_dict(), averaged)
    _step(engine, 1, dtype=torch.float64)
