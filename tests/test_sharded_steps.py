"""Under every strategy: exact restores, skipped steps, checkpoints, evaluation in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import cross_entropy, mini_batch
from engine_runs import ADAMW, SGD, Run, engine_for, own_part, relative_difference, settings
from layouts import LAYOUTS
from rank_pool import OnRanks

from msam_scale.engine import Engine

ROWS = list(LAYOUTS)


def _largest(row: str) -> int:
    # ZeRO-3's hooks take their time; the trajectories have it on 4 ranks.
    return 2 if row == "ZeRO-3" else LAYOUTS[row].sizes[-1]


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def _batch(engine: Engine, step: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return own_part(engine, mini_batch(step, dtype=dtype))


def _is_untouched_at_learning_rate_zero(config: dict[str, Any]) -> bool:
    engine = engine_for(Run(config, model="odd, all of it used"))
    dtype = torch.float64 if config["precision"] == "float64" else torch.float32
    before = engine.full_state_dict()
    for step in range(4):
        engine.train_step(_batch(engine, step % 3, dtype))
    return _same(before, engine.full_state_dict())


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("row", ROWS)
def test_steps_at_learning_rate_zero_leave_every_bit(
    row: str, precision: str, on_ranks: OnRanks
) -> None:
    layout = LAYOUTS[row]
    if precision == "float64" and layout.precision != "float64":
        pytest.skip("DeepSpeed has no float64")
    if precision == "float16" and layout.same_modules:
        pytest.skip("DeepSpeed has no float16 on a CPU")
    optimizer = {"name": "sgd", "lr": 0.0}
    config = settings(
        micro_batches=4,
        chunk=3,
        rho=0.5,
        optimizer=optimizer,
        precision=precision,
        **layout.sharding,
    )
    assert all(on_ranks(_largest(row), _is_untouched_at_learning_rate_zero, config))


def _skips(config: dict[str, Any], bad_pass: int, bad_rank: int) -> list[bool]:
    """Whether each of three steps was skipped; in the second a pass of one rank overflows."""
    calls: list[int] = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        calls.append(len(calls))
        loss = cross_entropy(model, batch)
        bad = number == 1 and engine.ranks.rank == bad_rank and calls[-1] % 2 == bad_pass
        return loss * float("inf") if bad else loss

    engine = engine_for(Run(config, model="odd, all of it used"), loss_fn=loss_fn)
    skipped = []
    for number in range(3):
        before = engine.full_state_dict()
        step = engine.train_step(_batch(engine, number, torch.float32))
        skipped.append(step.skipped)
        assert step.skipped == _same(before, engine.full_state_dict())
    assert engine.skipped_steps.total == 1
    return skipped


@pytest.mark.parametrize("bad_pass", [0, 1], ids=["ascent", "descent"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("row", ROWS)
def test_an_overflow_on_one_rank_in_either_pass_leaves_all_weights(
    row: str, precision: str, bad_pass: int, on_ranks: OnRanks
) -> None:
    layout, size = LAYOUTS[row], _largest(row)
    if precision == "float16" and layout.same_modules:
        pytest.skip("DeepSpeed has no float16 on a CPU")
    loss_scale = {"initial_power": 8} if precision == "float16" else {}
    config = settings(micro_batches=4, precision=precision, **layout.sharding)
    config["training"] = {"loss_scale": loss_scale} if loss_scale else {}
    skipped = on_ranks(size, _skips, config, bad_pass, size - 1)
    assert skipped == [[False, True, False]] * size


def _scales(config: dict[str, Any]) -> list[float]:
    engine = engine_for(Run(config, model="linear"))
    scales = []
    for number in range(8):
        images, labels = mini_batch(number, dtype=torch.float32)
        if number in (1, 2):
            images[-1] = float("inf")
        engine.train_step(own_part(engine, (images, labels)))
        scales.append(engine._sharding.counters()["loss_scale"])
    return scales


def _scales_of_deepspeed() -> list[float]:
    import deepspeed
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from msam_scale.sharding.zero import private_api

    private_api.prepare_process()
    deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False, verbose=False)
    scaler = DynamicLossScaler(
        init_scale=256,
        scale_window=2,
        min_scale=1.0,
        delayed_shift=2,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
    )
    scales = []
    for number in range(8):
        scaler.update_scale(number in (1, 2))
        scales.append(float(scaler.cur_scale))
    return scales


@pytest.mark.parametrize("row", ["replicated", "FSDP", "ZeRO-1"])
def test_the_loss_scale_follows_deepspeeds_rule(row: str, on_ranks: OnRanks) -> None:
    config = settings(micro_batches=4, precision="float16", **LAYOUTS[row].sharding)
    config["training"] = {"loss_scale": {"initial_power": 8, "window": 2, "hysteresis": 2}}
    expected = on_ranks(2, _scales_of_deepspeed)
    assert len(set(expected[0])) > 2
    assert on_ranks(2, _scales, config) == expected


def _save(config: dict[str, Any], folder: str) -> dict[str, torch.Tensor]:
    engine = engine_for(Run(config, model="wide_resnet"))
    for step in range(3):
        engine.train_step(_batch(engine, step, torch.float32))
    engine.save_checkpoint(folder)
    for step in range(3, 6):
        engine.train_step(_batch(engine, step, torch.float32))
    return engine.full_state_dict()


def _go_on(config: dict[str, Any], folder: str) -> dict[str, torch.Tensor]:
    engine = engine_for(Run(config, model="wide_resnet"))
    engine.load_checkpoint(folder)
    assert engine.num_steps_done == 3
    for step in range(3, 6):
        engine.train_step(_batch(engine, step, torch.float32))
    return engine.full_state_dict()


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("row", ROWS)
def test_a_run_goes_on_under_any_other_strategy_and_number_of_ranks(
    row: str, optimizer: dict[str, Any], tmp_path: Path, on_ranks: OnRanks
) -> None:
    def config(sharding: dict[str, Any]) -> dict[str, Any]:
        return settings(
            micro_batches=4,
            norm_samples=2,
            optimizer=optimizer,
            precision="float32",
            **sharding,
        )

    folder = str(tmp_path)
    expected = on_ranks(_largest(row), _save, config(LAYOUTS[row].sharding), folder)[0]
    start = engine_for(Run(config({}), model="wide_resnet")).full_state_dict()
    others = ROWS[ROWS.index(row) :] + ROWS[: ROWS.index(row)]
    for other in (row, *others[1:4]):
        size = LAYOUTS[other].sizes[0]
        state = on_ranks(size, _go_on, config(LAYOUTS[other].sharding), folder)[0]
        assert relative_difference(state, expected=expected, start=start) < 1e-5, other


def _losses_around_evaluation(config: dict[str, Any], *, evaluates: bool) -> list[float]:
    engine = engine_for(Run(config, model="odd, all of it used"))
    losses = []
    for step in range(4):
        losses.append(engine.train_step(_batch(engine, step, torch.float32)).loss)
        if evaluates:
            engine.eval()
            with torch.no_grad():
                engine.predict(mini_batch(9, dtype=torch.float32)[0])
            engine.train()
    return losses


@pytest.mark.parametrize("row", ROWS)
def test_an_evaluation_in_between_changes_nothing(row: str, on_ranks: OnRanks) -> None:
    config = settings(micro_batches=4, precision="float32", **LAYOUTS[row].sharding)
    size = _largest(row)
    without = on_ranks(size, _losses_around_evaluation, config, evaluates=False)
    assert on_ranks(size, _losses_around_evaluation, config, evaluates=True) == without
