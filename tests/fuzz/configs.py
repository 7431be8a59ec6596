"""Configs and DeepSpeed JSONs with strange values, keys and bytes, and strange overrides."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from random import Random
from typing import Any

import yaml
from harness import STRANGE, call, damage, damage_bytes, held, json_bytes

from msam_scale.config.describe import property_of
from msam_scale.config.keys import all_keys

_KEYS = Path(__file__).parents[1] / "config/deepspeed_keys.yaml"
# Of a run that `config check` looks at whole: its data are opened and its model is built.
_OURS: dict[str, Any] = {
    "model": {"source": "msam_scale", "name": "wrn-10-1", "args": {"drop_rate": 0.1}},
    "data": {"transform": "none", "order": "window:shards=1"},
    "objective": {"algorithm": "msam", "micro_batches": 4, "rho": 0.05},
    "batch": {"size": 32, "norm_samples": 4},
    "optimizer": {"name": "adamw", "lr": 0.1, "args": {"betas": [0.9, 0.99]}},
    "training": {"steps": 9},
    "sharding": {"strategy": "zero2", "deepspeed": {"disable_python_gc": True}},
}
# What else is built in a moment.
_MODELS: list[dict[str, Any]] = [
    {"source": "timm", "name": "test_resnet", "args": {}},
    {"source": "timm", "name": "test_vit", "args": {"img_size": 8, "patch_size": 4}},
]
_ARGUMENTS = ["act_layer", "norm_layer", "block", "drop_rate", "global_pool", "in_chans", "x"]
_OVERRIDES = ["[", "{x: 1}", "!!python/name:os.system", "a\udcff", "1e999", "'", "{0..99999999}"]
_DEEPSPEED: dict[str, Any] = {
    "train_batch_size": 32,
    "gradient_clipping": 0,
    "msam": {"micro_batches": 4, "rho": 0.05},
    "optimizer": {"type": "AdamW", "params": {"lr": 0.1, "betas": [0.9, 0.99]}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"total_num_steps": 9, "warmup_num_steps": 3},
    },
    "zero_optimization": {"stage": 2, "overlap_comm": True},
    "fp16": {"enabled": True, "initial_scale_power": 16},
}


class Configs:
    """Cases of `config check`.

    Args:
        home: an empty folder.
        digits: prepared data.
    """

    def __init__(self, home: Path, digits: Path) -> None:
        self._home, self._digits = home, digits
        for model in (None, *_MODELS):
            _check_whole(self._config(model), home)

    def _config(self, model: dict[str, Any] | None) -> dict[str, Any]:
        config = copy.deepcopy(_OURS)
        config["run"] = {"dir": str(self._home / "case/runs")}
        config["data"]["train"] = str(self._digits / "train")
        if model is not None:
            config["model"] = copy.deepcopy(model)
            config["batch"]["norm_samples"] = 4 if model["name"] == "test_resnet" else None
        return config

    def __call__(self, random: Random) -> None:
        """Checks a config that is changed in a few places."""
        case = _empty(self._home / "case")
        config = self._config(random.choice([None, None, None, *_MODELS]))
        if config["model"]["source"] == "timm" and random.randrange(2):
            config["model"]["args"][random.choice(_ARGUMENTS)] = _small(random)
        words = []
        for _ in range(random.randrange(3)):
            if random.randrange(3):
                key = random.choice(all_keys())
                section, _, last = key.rpartition(".")
                target = config.setdefault(section, {}) if section else config
                if isinstance(target, dict):
                    target[last] = _value(key, random)
            else:
                damage(config, random)
        if random.randrange(4) == 0:
            key = random.choice(all_keys()) + random.choice(["", "", ".x", "."])
            words = [f"{key}={random.choice(_OVERRIDES)}"]
        content = json_bytes(config)
        if random.randrange(5) == 0:
            content = damage_bytes(content, random)
        path = case / random.choice(["c.json", "c.json", "c.yaml"])
        path.write_bytes(content)
        options = random.choice([[], ["--no-data"], ["--nproc", "2"], ["--nproc", "3"]])
        with held(case):
            call("config", "check", str(path), *options, *words)


class DeepSpeedConfigs:
    """Cases of `config check` with DeepSpeed's own keys.

    Args:
        home: an empty folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._values: dict[str, list[Any]] = {}
        for keys in yaml.safe_load(_KEYS.read_text("utf-8")).values():
            for key in keys:
                values = keys[key] if isinstance(keys, dict) else True
                more = values if isinstance(values, list) else [values]
                self._values.setdefault(key, []).extend(more)
        _check_whole(_DEEPSPEED, home)
        _check_whole(_with_section({"disable_python_gc": True}), home)

    def __call__(self, random: Random) -> None:
        """Checks one that is changed in a few places, or one of ours that it is merged into."""
        case = _empty(self._home / "case")
        is_merged = random.randrange(3) == 0
        config: dict[str, Any] = {} if is_merged else copy.deepcopy(_DEEPSPEED)
        for _ in range(random.randint(0, 2)):
            key = random.choice(sorted(self._values))
            config[key] = random.choice([*self._values[key], random.choice(STRANGE)])
        for _ in range(random.randint(0, 2)):
            if config:
                damage(config, random)
        path = case / "ds.json"
        path.write_bytes(json_bytes(config))
        if is_merged:
            path = case / "c.json"
            path.write_bytes(json_bytes(_with_section(random.choice(["ds.json", config]))))
        with held(case):
            call("config", "check", str(path), *random.choice([[], ["--nproc", "2"]]))


def _with_section(deepspeed: Any) -> dict[str, Any]:
    return {**_OURS, "sharding": {"strategy": "zero2", "deepspeed": deepspeed}}


def _check_whole(config: dict[str, Any], home: Path) -> None:
    """What is not changed is right; and all is imported, which is no case's memory."""
    path = home / "whole.json"
    path.write_bytes(json_bytes(config))
    said = call("config", "check", str(path))
    assert "msam-scale:" not in said, said


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _value(key: str, random: Random) -> Any:
    """A strange value, or one that the schema knows."""
    schema = property_of(key.split(".")) or {}
    options = [schema, *schema.get("anyOf", ())]
    choices = [choice for option in options for choice in option.get("enum", ())]
    return random.choice([*choices, *STRANGE] if random.randrange(2) else choices or STRANGE)


def _small(random: Random) -> Any:
    """Nothing that makes a model large: how large a model is, is its user's business."""
    return random.choice([one for one in STRANGE if not isinstance(one, int) or abs(one) < 4])
