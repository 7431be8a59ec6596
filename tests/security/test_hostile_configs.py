"""Configs that were made to run code, to take the memory, or to read and write elsewhere."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from memory_bound import bounded

from data_pipelines import SampleIndex, build_index
from data_pipelines.errors import UserError
from msam_scale.config import load_config
from msam_scale.models import ModelRequest, build_model
from msam_scale.reproduction.experiment import load_experiment

_NAMES = "abcdefghij"


def _laughs(first: str, *, again: str) -> str:
    """Nine aliases of nine aliases of …: some hundred bytes that stand for a billion values."""
    lines = [f"    a: &a {first}"]
    for before, name in pairwise(_NAMES):
        lines.append(f"    {name}: &{name} {again.format(', '.join([f'*{before}'] * 9))}")
    return "model:\n  args:\n" + "\n".join(lines) + "\n"


_CONFIGS = {
    "a call": ("c.yaml", "run: !!python/object/apply:os.system ['touch {victim}']", "tag"),
    "a new object": ("c.yaml", "run: !!python/object/new:os.system ['touch {victim}']", "tag"),
    "a name": ("c.yaml", "run: {{name: !!python/name:os.system }}", "tag"),
    "a module": ("c.yaml", "run: !!python/module:antigravity x", "tag"),
    "not a boolean": ("c.yaml", "run: !!bool x", "fit its tag"),
    "not a time": ("c.yaml", "run: !!timestamp x", "fit its tag"),
    "not a number": ("c.yaml", "run: !!float ''", "fit its tag"),
    "billion laughs": ("c.yaml", _laughs("[x, y]", again="[{}]"), "aliases .* stand for"),
    "billion merges": ("c.yaml", _laughs("{{x: 1}}", again="{{{{<<: [{}]}}}}"), "aliases"),
    "itself": ("c.yaml", "model: {{args: &a {{x: [*a, *a, *a]}}}}", "contains itself"),
    # The reader alone would fill the stack, and takes seconds to get there.
    "depth": ("c.yaml", "run: " + "[" * 300, "too deeply"),
    "depth in JSON": ("c.json", '{{"run": ' + "[" * 100_000, "too deeply"),
    "length": ("c.yaml", "run: {{}} #" + "x" * (1 << 20), "more than 262144 characters"),
    "length in JSON": ("c.json", '{{"run": "' + "x" * (1 << 20), "more than 262144 characters"),
    "digits": ("c.yaml", "run: {{seed: 0x" + "f" * 20_000 + "}}", "20002 digits"),
    "digits in JSON": ("c.json", '{{"run": {{"seed": ' + "9" * 100_000 + "}}}}", "digits"),
    "a key twice in JSON": ("c.json", '{{"run": {{}}, "run": {{}}}}', "given twice"),
    "a climbing name": ("c.yaml", "run: {{name: ../../x}}", "no|not a plain folder name"),
    "another file": ("c.yaml", "sharding: {{deepspeed: /etc/passwd}}", "not named like a config"),
}


@pytest.mark.parametrize("kind", _CONFIGS)
def test_hostile_configs_are_refused(kind: str, tmp_path: Path) -> None:
    name, text, words = _CONFIGS[kind]
    victim, path = tmp_path / "victim", tmp_path / name
    path.write_text(text.format(victim=victim))
    with bounded(), pytest.raises(UserError, match=words) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 5000, "is to be read by people"
    assert not victim.exists()


def test_hostile_deepspeed_files_and_overrides_are_refused(tmp_path: Path) -> None:
    (tmp_path / "laughs.yaml").write_text(_laughs("[x, y]", again="[{}]"))
    (tmp_path / "config.yaml").write_text("sharding: {strategy: zero1, deepspeed: laughs.yaml}")
    with bounded(), pytest.raises(UserError, match=r"sharding.deepspeed: .*laughs.yaml: .*aliases"):
        load_config(tmp_path / "config.yaml")
    text = "{a: &a [1], b: &b [*a], c: !!python/name:os.system x}"
    for override in (f"model.args={text}", "model.args=" + "[" * 300):
        with bounded(), pytest.raises(UserError, match=r"line: model.args: .*(tag|cannot be read)"):
            load_config({}, overrides=[override])
    with bounded(), pytest.raises(UserError, match=r"laughs.yaml: cannot be read: .*aliases"):
        load_experiment(tmp_path / "laughs.yaml")


def test_configs_that_never_end_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "zeros.json"):
        with pytest.raises(UserError, match=rf"{name}: is no file but a pipe or a device"):
            load_config(tmp_path / name)


@pytest.mark.parametrize(
    "braces",
    [
        "{0..9999999999}",
        "{0..9}" * 30,
        "{a..Z}" * 8,
        "{0,{1,{2,{0..99999999}}}}",
        "{0..999}{a,b}{0..999..1}",
        "{" + "a," * 999 + "{0..9999}}{0..999}",
        "x" * 3000 + "{0..99999}",
        "{," * 400 + "}" * 400,
    ],
)
def test_braces_that_stand_for_too_much_are_refused(braces: str, tmp_path: Path) -> None:
    with bounded(), pytest.raises(UserError, match="its braces stand for more than") as caught:
        build_index([f"{tmp_path}/{braces}.tar"])
    assert len(str(caught.value)) < 500
    if len(braces) < 200:  # a name may have so many characters
        with bounded(), pytest.raises(UserError, match="its braces stand for more than"):
            SampleIndex.open(f"{tmp_path}/{braces}.tar")


@pytest.mark.parametrize(
    ("source", "name", "argument", "words"),
    [
        # timm would read the weights that these name, and unpickles some.
        ("timm", "resnet18", "pretrained_cfg", "pretrained_cfg is not passed on"),
        ("timm", "resnet18", "pretrained_cfg_overlay", "pretrained_cfg_overlay is not passed on"),
        ("timm", "resnet18", "checkpoint_path", "set model.weights"),
        ("timm", "resnet18", "cache_dir", "cache_dir is not passed on"),
        ("transformers", "nobody/nothing", "trust_remote_code", "is not run"),
        ("transformers", "nobody/nothing", "use_safetensors", "never unpickled"),
    ],
)
def test_arguments_that_lead_to_code_are_refused(
    source: str, name: str, argument: str, words: str
) -> None:
    kind, num_channels = ("images", 3) if source == "timm" else ("text", None)
    request = ModelRequest(
        name=name, num_classes=2, num_channels=num_channels, kind=kind, arguments={argument: "x"}
    )
    with pytest.raises(UserError, match=words):
        build_model(source, request, seed=0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {"block": "nonsense"}),
        ("test_resnet", {"act_layer": "nonsense"}),
        ("test_resnet", {"norm_layer": "nonsense"}),
        ("test_resnet", {"global_pool": 3.5}),
        ("test_resnet", {"layers": [1]}),
        ("test_convnext", {"depths": [1]}),
    ],
)
def test_arguments_that_a_model_cannot_use_are_refused(
    name: str, arguments: dict[str, Any]
) -> None:
    request = ModelRequest(name=name, num_classes=2, num_channels=3, arguments=arguments)
    with pytest.raises(UserError, match=rf"model.args: {name} refuses .*{next(iter(arguments))}"):
        build_model("timm", request, seed=0)


def test_settings_that_name_no_type_are_refused(tmp_path: Path) -> None:
    settings = {"model_type": "bert", "torch_dtype": "nonsense", "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for kept in (None, settings):
        request = ModelRequest(name=str(tmp_path), num_classes=2, kind="text", settings=kept)
        with pytest.raises(UserError, match=r"cannot be loaded .*nonsense"):
            build_model("transformers", request, seed=0)


def test_kernels_of_the_hub_are_refused() -> None:
    settings = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1}
    request = ModelRequest(
        name="bert",
        num_classes=2,
        kind="text",
        arguments={"attn_implementation": "nobody/kernel"},
        settings=settings,
    )
    with pytest.raises(UserError, match=r"attn_implementation: 'nobody/kernel' is a kernel"):
        build_model("transformers", request, seed=0)
