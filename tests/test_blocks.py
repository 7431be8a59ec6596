"""Blocks are found, recomputed and compiled; the result stays the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import Run, outcome_of, relative_difference, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from torch import nn
from transformers import GPT2Config, GPT2Model

from msam_scale.errors import UserError
from msam_scale.initialization import initialize
from msam_scale.layers.blocks import find_blocks
from msam_scale.models.wide_resnet import WideResNet


def _gpt2() -> nn.Module:
    config = GPT2Config(
        n_embd=8, n_layer=3, n_head=2, vocab_size=20, bos_token_id=0, eos_token_id=0
    )
    return GPT2Model(config)


# Class names of the blocks, and how many there are, as the models' sources have them.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", depth=5), {"Block": 5}),
    "resnet": (lambda: timm.create_model("resnet26"), {"Bottleneck": 8}),
    "convnext": (lambda: timm.create_model("convnext_atto"), {"ConvNeXtBlock": 12}),
    "swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 2, 1)),
        {"SwinTransformerBlock": 5},
    ),
    "wide resnet": (lambda: WideResNet(depth=16, width=1, num_classes=10), {"WideBasicBlock": 6}),
    "bert": (lambda: build_model("bert"), {"BertLayer": 2}),
    "gpt2": (_gpt2, {"GPT2Block": 3}),
    "no list": (lambda: build_model("odd"), {}),
    "plain layers": (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), {}),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_found(name: str) -> None:
    build, expected = BLOCKS[name]
    with torch.device("meta") if name not in ("bert", "gpt2") else torch.device("cpu"):
        model = build()
    blocks = find_blocks(model)
    assert Counter(type(block).__name__ for block in blocks) == expected
    inside = [parameter for block in blocks for parameter in block.parameters()]
    assert len(inside) == len(set(inside)), "no block contains another"


def test_blocks_that_share_a_parameter_with_the_rest_are_none() -> None:
    layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(3))
    layers[2][0].weight = layers[1][0].weight  # type: ignore[index]
    assert find_blocks(nn.Sequential(layers)) == [layers[0]]


def test_blocks_by_name() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2)
    assert find_blocks(model, names=["Mlp"]) == [block.mlp for block in model.blocks]
    with pytest.raises(UserError, match=r"sharding\.blocks: no layer of class MLP .* Mlp,"):
        find_blocks(model, names=["MLP"])


def _relative_change(config: dict[str, Any], change: dict[str, Any]) -> float:
    """Of a trajectory with other settings of the training, relative to its length."""
    plain, outcome = (
        outcome_of(Run(one, model="dropout_vit", steps=2))
        for one in (config, config | {"training": change})
    )
    start = build_model("dropout_vit").state_dict()
    return relative_difference(outcome.state, expected=plain.state, start=start)


def _layout(row: str) -> dict[str, Any]:
    layout = LAYOUTS[row]
    return settings(micro_batches=4, chunk=4, precision=layout.precision, **layout.sharding)


@pytest.mark.layouts
@pytest.mark.parametrize(("row", "every"), [("FSDP", True), ("ZeRO-2", 2), ("ZeRO-3", True)])
def test_recomputed_activations_change_nothing(
    row: str, every: bool | int, on_ranks: OnRanks
) -> None:
    config = _layout(row)
    change = on_ranks(2, _relative_change, config, {"activation_checkpointing": every})[0]
    # Without a reduction over few samples a step in float32 keeps its rounding.
    assert change < (1e-9 if config["precision"] == "float64" else 1e-5)


def _num_forwards(model: nn.Module, every: bool | int | None) -> list[int]:
    """How often each block runs in a step."""
    config = settings(micro_batches=2)
    if every is not None:
        config["training"] = {"activation_checkpointing": every}
    engine = initialize(model, config=config, loss_fn=cross_entropy)
    counts = [0, 0]
    hooks = []
    for index, block in enumerate(engine.module.blocks):  # type: ignore[arg-type, union-attr]

        def count(*_: Any, index: int = index) -> None:
            counts[index] += 1

        hooks.append(block.norm1.register_forward_hook(count))
    engine.train_step(mini_batch(0))
    for hook in hooks:
        hook.remove()
    return counts


def test_every_second_block_is_computed_twice() -> None:
    model = build_model("dropout_vit")
    assert _num_forwards(model, None) == [4, 4]
    assert _num_forwards(model, True) == [8, 8]
    # Every engine finds the model as if no other had had it before.
    assert _num_forwards(model, 2) == [8, 4]
    assert _num_forwards(model, None) == [4, 4]


def _compiled_change(row: str) -> float:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    change = _relative_change(_layout(row), {"compile": True})
    assert torch._dynamo.utils.counters["frames"]["ok"] > 2
    return change


@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_follow_the_same_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as always; only the C++ compiler is left out, which takes long."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert _compiled_change("replicated") < 1e-9


@pytest.mark.part("trajectories")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ["replicated", "FSDP", "ZeRO-2"])
def test_compiled_blocks_follow_the_same_trajectory_in_every_layout(row: str) -> None:
    bound = 1e-9 if LAYOUTS[row].precision == "float64" else 1e-5
    assert _compiled_change(row) < bound
