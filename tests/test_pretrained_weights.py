"""Weights out of a file, and those of timm: what is kept, what starts anew, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from saved_state import checkpoint_weights
from timm.layers import resample_abs_pos_embed
from torch import nn

from data_pipelines.errors import UserError
from launch.cli import main
from msam_scale.models import ModelRequest, build_model, check_model_name

VIT: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}
NAMES = {"vit": ("timm", "vit_tiny_patch16_224", {**VIT, "img_size": 16})}
NAMES["wrn"] = ("msam_scale", "wrn-10-1", {})
NAMES["resnet"] = ("timm", "resnet10t", {})
HEADS = {"vit": "head", "wrn": "head", "resnet": "fc"}


def make(
    which: str,
    weights: Path | None = None,
    *,
    seed: int = 1,
    num_classes: int = 10,
    num_channels: int = 3,
    **arguments: Any,
) -> nn.Module:
    source, name, others = NAMES[which]
    request = ModelRequest(
        name, num_classes, num_channels, arguments={**others, **arguments}, weights=weights
    )
    return build_model(source, request, seed=seed)


def saved(model: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    save_file(model.state_dict(), path)
    return load_file(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_initial_weights_follow_from_the_seed_alone() -> None:
    states = []
    for callers_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(callers_seed)
        states.append(make("wrn", seed=seed).state_dict()["stem.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])


@pytest.mark.parametrize("which", NAMES)
def test_the_same_model_gets_all_weights(which: str, path: Path) -> None:
    state = saved(make(which, seed=5), path)
    found = make(which, path).state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("which", NAMES)
@pytest.mark.parametrize("headless", [False, True])
def test_a_head_of_other_classes_starts_anew(which: str, headless: bool, path: Path) -> None:
    state = saved(make(which, seed=5), path)
    layer = f"{HEADS[which]}."
    if headless:
        save_file({name: t for name, t in state.items() if not name.startswith(layer)}, path)
    found = make(which, path, num_classes=7).state_dict()
    fresh = make(which, num_classes=7).state_dict()
    for name, tensor in found.items():
        source = fresh if name.startswith(layer) else state
        assert torch.equal(tensor, source[name]), name
    assert found[f"{layer}weight"].shape[0] == 7


def test_another_image_size_resamples_the_position_embedding(path: Path) -> None:
    state = saved(make("vit", seed=5), path)
    found = make("vit", path, img_size=32).state_dict()
    expected = resample_abs_pos_embed(state["pos_embed"], [8, 8])
    assert torch.equal(found["pos_embed"], expected)
    assert torch.equal(found["blocks.1.mlp.fc1.weight"], state["blocks.1.mlp.fc1.weight"])


def test_grey_images_sum_the_filters_of_the_colours(path: Path) -> None:
    state = saved(make("vit", seed=5), path)
    found = make("vit", path, num_channels=1).state_dict()
    filters = state["patch_embed.proj.weight"]
    torch.testing.assert_close(found["patch_embed.proj.weight"], filters.sum(1, keepdim=True))


def test_weights_of_grey_images_fit_grey_images(path: Path) -> None:
    state = saved(make("vit", seed=5, num_channels=1), path)
    found = make("vit", path, num_channels=1, num_classes=7).state_dict()
    assert torch.equal(found["patch_embed.proj.weight"], state["patch_embed.proj.weight"])


def test_weights_of_grey_images_are_spread_over_colours(path: Path) -> None:
    state = saved(make("vit", seed=5, num_channels=1), path)
    found = make("vit", path).state_dict()["patch_embed.proj.weight"]
    torch.testing.assert_close(found, state["patch_embed.proj.weight"].repeat(1, 3, 1, 1) / 3)


@pytest.mark.parametrize(
    ("which", "arguments", "said"),
    [
        ("vit", {"depth": 3}, "blocks.2"),
        ("vit", {"depth": 1}, "blocks.1"),
        ("vit", {"embed_dim": 64, "num_classes": 7}, "model.args"),
        ("wrn", {}, "stem.weight"),
        ("resnet", {}, "conv1.0.weight"),
    ],
)
def test_weights_of_another_model_are_refused(
    which: str, arguments: dict[str, Any], said: str, path: Path
) -> None:
    saved(make("vit"), path)
    with pytest.raises(UserError, match=f"model.weights: .* does not fit model.name: .*{said}"):
        make(which, path, **arguments)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pickle.pt").write_bytes(b"\x80")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    for name, said in [
        ("nowhere.safetensors", "is not there"),
        (".", "no checkpoint here"),
        ("pickle.pt", "does not end with .safetensors"),
        ("broken.safetensors", "cannot be read"),
    ]:
        for which in NAMES:
            with pytest.raises(UserError, match=f"model.weights: .*{said}.*checkpoint"):
                make(which, tmp_path / name)


def test_a_pickle_is_refused_with_what_converts_it(tmp_path: Path) -> None:
    state = make("wrn", seed=5).state_dict()
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "model.pth")
    with pytest.raises(UserError) as caught:
        make("wrn", tmp_path / "model.pth")
    code = str(caught.value).split('python -c "')[1].split('"')[0]
    exec(code)
    found = make("wrn", tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_weights_of_timm_get_a_new_head(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the hub, out of a file that stands in for it."""
    state = saved(timm.create_model("resnet10t"), path)
    local = timm.get_pretrained_cfg("resnet10t")
    local.file = str(path)  # goes before the hub in timm
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, "resnet10t", local)
    same = ModelRequest("resnet10t", 1000, 3, pretrained=True)
    build_model("timm", same, seed=0)
    assert same.anew == []
    request = ModelRequest("resnet10t", 7, 3, pretrained=True)
    found = build_model("timm", request, seed=0).state_dict()
    assert request.anew == ["fc"]
    assert torch.equal(found["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    assert found["fc.weight"].shape[0] == 7


def test_weights_that_timm_cannot_fetch_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise FileNotFoundError("no connection")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    with pytest.raises(
        UserError, match=r"model\.pretrained: .*no connection; model\.weights works"
    ):
        build_model("timm", ModelRequest("resnet10t", 7, 3, pretrained=True), seed=0)
    without = "vit_small_patch16_18x2_224"
    with pytest.raises(UserError, match=r"model\.pretrained: timm .* has no pretrained weights"):
        build_model("timm", ModelRequest(without, 7, 3, pretrained=True), seed=0)


def test_an_unknown_tag_is_refused_with_the_known_ones() -> None:
    check_model_name("timm", "vit_base_patch16_224.orig_in21k")
    with pytest.raises(UserError, match=r"vit_base_patch16_224\.orig_in21k"):
        check_model_name("timm", "vit_base_patch16_224.in21k")


@pytest.mark.parametrize(
    ("argument", "key"), [("pretrained", "model.pretrained"), ("checkpoint_path", "model.weights")]
)
def test_arguments_with_a_key_of_their_own_are_refused(argument: str, key: str) -> None:
    request = ModelRequest("resnet10t", 7, 3, arguments={argument: "x"})
    with pytest.raises(UserError, match=f"model.args: {argument} .*{key}"):
        build_model("timm", request, seed=0)


def test_a_run_starts_from_a_checkpoint_of_another_and_goes_on_without_it(
    tmp_path: Path,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    common = f"""
model: {{source: msam_scale, name: wrn-10-1}}
data: {{train: {digits}/train}}
objective: {{micro_batches: 2}}
batch: {{size: 32}}
optimizer: {{lr: 0.0}}
training: {{steps: 1}}
monitor: {{tensorboard: false, progress: false}}
"""
    Path("one.yaml").write_text(common)
    assert main(["train", "one.yaml"]) == 0
    weights = Path("runs/one/checkpoints/step-00000001")
    second = ["train", "one.yaml", "run.name=two", "run.seed=9", f"model.weights={weights}"]
    assert main([*second, "checkpoint.every=1"]) == 0
    found = checkpoint_weights(str(weights).replace("one", "two"))
    expected = checkpoint_weights(weights)
    assert all(
        torch.equal(found[n], expected[n]) for n in found if "running" not in n and "num_" not in n
    )

    shutil.rmtree(weights)
    capsys.readouterr()
    assert main([*second, "run.name=three"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"msam-scale: command line: model.weights: {weights} is not there;")
    assert main(second) == 0, "its own checkpoint has all it needs"
