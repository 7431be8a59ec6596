"""The average of the weights in one process; `test_contract.py` has it on every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import BATCH_SIZE, build_model, cross_entropy, mini_batch
from engine_runs import ADAMW, Run, engine_for, settings
from timm.utils import ModelEmaV3
from torch import nn

from msam_scale.engine import Engine
from msam_scale.errors import UserError
from msam_scale.initialization import initialize

State = dict[str, torch.Tensor]

DECAY = 0.8
BAD_STEP = 2
STEPS = 5


def _config(*, ema: float | None = DECAY, **over: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"micro_batches": 4, "chunk": 4, "optimizer": ADAMW}
    return settings(**{**arguments, **over}) | {"training": {"ema": ema}}


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def _step(engine: Engine, step: int) -> None:
    images, labels = mini_batch(step)
    if step == BAD_STEP:
        images[BATCH_SIZE - 1, 0, 0, 0] = float("nan")
    assert engine.train_step((images, labels)).skipped == (step == BAD_STEP)


def test_it_is_the_average_of_timm() -> None:
    """Of running statistics as well, while counts are the model's; and of good steps alone."""
    config = _config(norm_samples=4)
    engine = engine_for(Run(config, model="wide_resnet"))
    plain = build_model("wide_resnet").double()
    plain.load_state_dict(engine.full_state_dict())
    averaged = ModelEmaV3(plain, decay=DECAY)
    for step in range(STEPS):
        _step(engine, step)
        if step != BAD_STEP:
            plain.load_state_dict(engine.full_state_dict())
            averaged.update(plain)
    state, own = engine.full_averaged_state_dict(), engine.full_state_dict()
    for name, tensor in averaged.module.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-12, atol=1e-14)
        if name.endswith("num_batches_tracked"):
            assert int(state[name]) == STEPS - 1
        if name.endswith("running_mean"):
            assert not state[name].equal(own[name])


def test_what_does_not_work_while_the_model_has_the_average() -> None:
    engine = engine_for(Run(_config()))
    assert engine.average is not None
    _step(engine, 0)
    before, averaged = engine.full_state_dict(), engine.full_averaged_state_dict()

    def fails() -> None:
        with engine.averaged_weights():
            raise ZeroDivisionError

    with engine.averaged_weights():
        assert _same(engine.full_state_dict(), averaged)
        with pytest.raises(UserError, match="train_step does not work inside"):
            _step(engine, 1)
        with pytest.raises(UserError, match=r"averaged_weights\(\) does not work inside"):
            engine.full_averaged_state_dict()
        with pytest.raises(UserError, match=r"copying the weights .* does not work inside"):
            engine.average.copy_from_weights()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert _same(engine.full_state_dict(), before)
    assert _same(engine.full_averaged_state_dict(), averaged)
    engine.average.copy_from_weights()
    assert _same(engine.full_averaged_state_dict(), before)


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
        _step(engine, step)
    state = engine.full_averaged_state_dict()
    assert state["mask"].tolist() == [0.0, float("-inf")]
    assert bool(state["head.weight"].isfinite().all())


def test_a_failure_halfway_puts_back_what_was_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    from msam_scale import weight_average

    engine = engine_for(Run(_config()))
    _step(engine, 0)
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
    _step(engine, 1)
