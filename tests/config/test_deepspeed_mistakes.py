"""What a DeepSpeed config is refused for, in one line that names DeepSpeed's key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from deepspeed_configs import GOOD, MSAM, OURS, load, refusal, zero
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from launch.cli import main
from msam_scale.config import ConfigError, load_config
from msam_scale.config.deepspeed.top_level_keys import TOP_LEVEL_KEYS

REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"train_batchsize": 3}, "train_batchsize: is not a key that DeepSpeed 0.19.8 reads; did you"),
    ({"batch": {"size": 3}}, "batch: is not a key .* beside an msam section there are DeepSpeed's"),
    ({"msam": {"micro_batches": 8, "roh": 1}}, r"msam\.roh: is not a key; did you mean msam\.rho"),
    ({"msam": {"micro_batches": 8, "m": 1}}, r"msam\.m: .* did you mean msam\.micro_batches"),
    ({"msam": {"micro_batches": 8, "zzz": 1}}, r"msam\.zzz: .* the keys of msam are algorithm"),
    ({"msam": 8}, "msam: 8 is a whole number; a mapping works, such as"),
    ({"msam": {"micro_batches": 8, "rho": -1}}, r"msam\.rho: -1 is below 0"),
    ({"msam": {"micro_batches": 7}}, r"msam\.micro_batches: a mini-batch of 64 cannot be cut"),
    ({"msam": {}}, r"config: objective\.micro_batches: is missing"),
    ({"train_batch_size": 0}, "train_batch_size: 0 is not a whole number ≥ 1"),
    ({"train_batch_size": "auto"}, "train_batch_size: 'auto' .* Hugging Face Trainer"),
    ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, r"optimizer\.params\.lr: 'auto'"),
    ({"gradient_clipping": True}, "gradient_clipping: true is a boolean; a number ≥ 0 works"),
    ({"gradient_clipping": -1}, "gradient_clipping: -1 is not above 0"),
    ({"optimizer": {"type": "Lamb"}}, r"optimizer\.type: Lamb is refused: .* torch has none"),
    ({"optimizer": {"type": "Lamb"}, "zero_optimization": zero(1)}, "Lamb is .* number of ranks"),
    ({"optimizer": {"type": "OneBitAdam"}}, "has removed it; Adam, AdamW"),
    ({"optimizer": {"type": "Muon"}, "zero_optimization": zero(1)}, "Muon is refused: its step"),
    ({"optimizer": {"type": "Adafactor"}, "zero_optimization": zero(2)}, "Adafactor is refused"),
    ({"optimizer": {"type": "Lion"}}, r"optimizer\.type: Lion .*stage 1, 2 or 3 works"),
    ({"optimizer": {}}, r"optimizer\.type: null is null; Adam"),
    ({"optimizer": {"type": "Adam", "adam_w_mode": True}}, "it belongs into params"),
    ({"optimizer": {"type": "Adam", "params": {"beta": 1}}}, "did you mean betas"),
    ({"optimizer": {"type": "SGD", "params": {"max_grad_norm": 1}}}, "gradient_clipping at the"),
    ({"optimizer": {"type": "Adam", "params": {"amsgrad": True}}}, "true is not available"),
    ({"optimizer": {"type": "Adam", "params": {"bias_correction": False}}}, "false is not availab"),
    ({"scheduler": {"type": "StepLR"}}, r"scheduler\.type: 'StepLR' is not one of DeepSpeed's"),
    ({"scheduler": {"type": "WarmupDecayLR"}}, r"scheduler\.params: lacks total_num_steps"),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_steps": 3}}},
        r"scheduler\.params\.warmup_steps: .* did you mean warmup_num_steps",
    ),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "cubic"}}},
        r"scheduler\.params\.warmup_type: 'cubic' is text; 'log' or 'linear' works",
    ),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"last_batch_iteration": 3}}},
        "a run that goes on knows its step",
    ),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": [0.1, 0.2]}}},
        "is a list; a number, or null .* the same for all parameters",
    ),
    (
        {"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 10}}},
        r"scheduler\.params\.warmup_num_steps: 1000 steps are more than total_num_steps: 10",
    ),
    ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "fp16: is enabled, and so is bf16"),
    ({"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}, "rounds away in weights"),
    ({"fp16": {"enabled": True, "loss_scale": -1}}, r"fp16\.loss_scale: -1 is not a number ≥ 0"),
    ({"fp16": {"enabled": True, "loss_scale_window": 0}}, r"fp16\.loss_scale_window: 0 is below 1"),
    ({"fp16": {"enabled": True, "hysteresys": 2}}, "did you mean hysteresis"),
    ({"fp16": True}, 'fp16: true is a boolean; {"enabled": true} works'),
    ({"zero_optimization": True}, 'zero_optimization: true is a boolean; {"stage": 2} works'),
    ({"zero_optimization": zero(4)}, "4 is not a stage; 0, 1, 2 or 3 works"),
    (
        {"zero_optimization": zero(3, offload_param={"device": "nvme"})},
        r"offload_param\.device: 'nvme' is refused: is not a device that works",
    ),
    (
        {"zero_optimization": zero(3, offload_optimizer={"device": "cpu", "ratio": 0.5})},
        r"offload_optimizer\.ratio: 0\.5 is refused: the two parts",
    ),
    (
        {"zero_optimization": zero(2), "msam": {**MSAM, "shard_group": 2}},
        r"msam\.shard_group: 2 has no effect with sharding\.strategy: zero2",
    ),
    ({"tensorboard": {"enabled": True, "path": "x"}}, r"tensorboard\.path: is not a key"),
    ({"steps_per_print": 0}, "steps_per_print: 0 is below 1"),
]


@pytest.mark.parametrize(("keys", "said"), REFUSALS)
def test_a_refusal_names_the_key_of_deepspeed_and_what_works(
    keys: dict[str, Any], said: str
) -> None:
    line = refusal(**keys)
    assert "\n" not in line
    assert re.search(said, line), line


def test_without_an_msam_section_it_says_to_add_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"train_batch_size": 64, "fp16": {"enabled": True}})
    assert str(caught.value) == (
        "config: msam: is missing from this DeepSpeed config; a section that says how works: "
        '"msam": {"micro_batches": 8, "rho": 0.05}'
    )


def test_a_config_of_ours_is_not_taken_for_deepspeeds() -> None:
    load_config({**OURS, "optimizer": {"name": "adamw"}, "checkpoint": {"keep": 1}})
    with pytest.raises(ConfigError, match="train_batch_size: is not a key"):
        load_config({**OURS, "train_batch_size": 64})


def test_a_mistake_in_a_file_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps({**GOOD, "zero_optimization": zero(1, round_robin_gradients=True)}))
    assert main(["config", "check", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"msam-scale: {path}: zero_optimization.round_robin_gradients: true")
    assert error.count("\n") == 1


def test_several_mistakes_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load(fp16={"enabled": True, "x": 1}, gradient_clipping="big", pipeline={}, zero_optim={})
    keys = [problem.key for problem in caught.value.problems]
    assert sorted(keys) == ["fp16.x", "gradient_clipping", "pipeline", "zero_optim"]


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["x"] = endless
    with pytest.raises(ConfigError, match="contains itself"):
        load(comms_logger=endless)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "params", "enabled", "stage", "lr", "x"]), inner)
    ),
    max_leaves=6,
)


@given(
    source=st.dictionaries(st.sampled_from([*TOP_LEVEL_KEYS, "batch", "x"]), junk, max_size=5),
    section=st.none() | st.fixed_dictionaries({"strategy": st.just("zero3"), "deepspeed": junk}),
)
@hypothesis_settings(max_examples=300)
def test_whatever_is_given_only_ends_in_problems_of_one_line(
    source: dict[str, Any], section: dict[str, Any] | None
) -> None:
    ours = {} if section is None else {**OURS, "sharding": section}
    with pytest.raises(ConfigError) as caught:
        load_config({**source, "unknown": 1, **ours})
    for problem in caught.value.problems:
        assert "\n" not in str(problem), problem
