"""`initialize` on a DeepSpeed JSON, as a user who comes from `deepspeed.initialize` calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import own_part, relative_difference
from rank_pool import OnRanks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import msam_scale
from msam_scale.errors import UserError

CONFIG: dict[str, Any] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": 0.5,
    "optimizer": {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}},
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_max_lr": 0.05, "warmup_num_steps": 4, "warmup_type": "linear"},
    },
    "msam": {"micro_batches": 4, "rho": 0.1, "seed": 3},
}


def _trained(path: str, **over: Any) -> dict[str, torch.Tensor]:
    settings = json.loads(Path(path).read_text()) | over
    engine = msam_scale.initialize(build_model("linear"), config=settings, loss_fn=cross_entropy)
    for step in range(6):
        engine.train_step(own_part(engine, mini_batch(step, dtype=torch.float32)))
    return engine.full_state_dict()


@pytest.mark.layouts
@pytest.mark.parametrize(("stage", "size"), [(1, 2), (2, 1), (3, 2)])
def test_every_stage_means_the_same(
    stage: int, size: int, tmp_path: Path, on_ranks: OnRanks
) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(CONFIG))
    plain = _trained(str(path))
    sharded = on_ranks(size, _trained, str(path), zero_optimization={"stage": stage})[0]
    start = build_model("linear").state_dict()
    assert relative_difference(sharded, expected=plain, start=start) < 1e-5


def test_without_a_perturbation_it_is_deepspeeds_own_training(tmp_path: Path) -> None:
    """Vanilla through our engine, and through `deepspeed.initialize`, on the same file."""
    import deepspeed

    from msam_scale.ranks import join
    from msam_scale.sharding.zero import private_api

    settings = CONFIG | {
        "msam": {"algorithm": "vanilla"},
        "train_micro_batch_size_per_gpu": 32,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(settings))
    ours = _trained(str(path))
    join().process_group_of(1)
    private_api.prepare_process()
    model = build_model("linear")
    theirs = {key: value for key, value in settings.items() if key != "msam"}
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=theirs, dist_init_required=False
    )
    for step in range(6):
        engine.backward(cross_entropy(engine, mini_batch(step, dtype=torch.float32)))
        engine.step()
    start = build_model("linear").state_dict()
    assert relative_difference(ours, expected=model.state_dict(), start=start) < 1e-5


def test_tensorboard_gets_deepspeeds_names(tmp_path: Path) -> None:
    tensorboard = {"enabled": True, "output_path": str(tmp_path / "events"), "job_name": "run"}
    settings = CONFIG | {"tensorboard": tensorboard, "steps_per_print": 2}
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(settings))
    _trained(str(path))
    events = EventAccumulator(str(tmp_path / "events" / "run")).Reload()
    rates = [(event.step, event.value) for event in events.Scalars("Train/Samples/lr")]
    assert [step for step, _ in rates] == [32, 64, 96, 128, 160, 192]
    assert rates[-1][1] == pytest.approx(0.05)
    assert [event.step for event in events.Scalars("Train/Samples/train_loss")] == [64, 128, 192]


def test_batch_sizes_that_disagree_are_refused_with_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(CONFIG | {"gradient_accumulation_steps": 5}))
    with pytest.raises(UserError, match=r"(?s)32.*4.*5|5.*4.*32"):
        msam_scale.initialize(build_model("linear"), config=path, loss_fn=cross_entropy)


@pytest.mark.parametrize(("name", "refused"), [("adafactor", True), ("rmsprop", False)])
def test_optimizers_that_look_at_whole_parameters_are_refused(name: str, refused: bool) -> None:
    config = {
        "objective": {"micro_batches": 2},
        "batch": {"size": 32},
        "optimizer": {"name": name, "lr": 0.01},
        "sharding": {"strategy": "zero1"},
    }
    if not refused:
        msam_scale.initialize(build_model("linear"), config=config, loss_fn=cross_entropy)
        return
    with pytest.raises(UserError, match=r"Adafactor.*AdamW"):
        msam_scale.initialize(build_model("linear"), config=config, loss_fn=cross_entropy)
