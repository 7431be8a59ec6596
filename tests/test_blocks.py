"""Blocks are found, recomputed and compiled; the result stays the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from engine_models import build_model, mini_batch
from engine_runs import Run, engine_for, outcome_of, own_part, relative_difference, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from torch import nn
from transformers import GPT2Config, GPT2Model

from msam_scale.errors import UserError
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


@pytest.mark.parametrize("every", [True, 2])
@pytest.mark.parametrize("row", LAYOUTS)
def test_recomputed_activations_change_nothing(
    row: str, every: bool | int, on_ranks: OnRanks
) -> None:
    layout = LAYOUTS[row]
    size = 4 if "2x2" in row else 2
    config = settings(micro_batches=4, chunk=4, precision="float32", **layout.sharding)
    recomputing = config | {"training": {"activation_checkpointing": every}}
    plain = on_ranks(size, outcome_of, Run(config, model="dropout_vit", steps=3))[0]
    outcome = on_ranks(size, outcome_of, Run(recomputing, model="dropout_vit", steps=3))[0]
    start = build_model("dropout_vit").state_dict()
    assert relative_difference(outcome.state, expected=plain.state, start=start) < 1e-6


def _num_forwards(config: dict[str, Any]) -> list[int]:
    engine = engine_for(Run(config, model="dropout_vit"))
    counts = [0, 0]
    for index, block in enumerate(engine.module.blocks):  # type: ignore[arg-type, union-attr]

        def count(*_: Any, index: int = index) -> None:
            counts[index] += 1

        block.norm1.register_forward_hook(count)
    engine.train_step(own_part(engine, mini_batch(0, dtype=torch.float32)))
    return counts


def test_every_second_block_is_computed_twice() -> None:
    config = settings(micro_batches=2, precision="float32")
    assert _num_forwards(config) == [4, 4]
    config["training"] = {"activation_checkpointing": True}
    assert _num_forwards(config) == [8, 8]
    config["training"] = {"activation_checkpointing": 2}
    assert _num_forwards(config) == [8, 4]


def _compiled(config: dict[str, Any]) -> tuple[Any, int]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    outcome = outcome_of(Run(config, model="dropout_vit", steps=3))
    return outcome, torch._dynamo.utils.counters["frames"]["ok"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ["replicated", "FSDP", "ZeRO-2"])
def test_compiled_blocks_follow_the_same_trajectory(row: str) -> None:
    layout = LAYOUTS[row]
    config = settings(micro_batches=4, chunk=4, precision="float32", **layout.sharding)
    plain = outcome_of(Run(config, model="dropout_vit", steps=3))
    outcome, num_frames = _compiled(config | {"training": {"compile": True}})
    start = build_model("dropout_vit").state_dict()
    assert relative_difference(outcome.state, expected=plain.state, start=start) < 1e-5
    assert num_frames > 2
