"""Models and habits of others: what is theirs to decide works, and nothing is lost in silence."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from engine_models import cross_entropy
from engine_runs import settings
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from msam_scale.config.sections.optimization import ScheduleSection
from msam_scale.engine import Engine
from msam_scale.errors import UserError
from msam_scale.initialization import initialize
from msam_scale.layers.key_value_cache import KeyValueCaches
from msam_scale.optimization import bind_schedule

CHECKPOINTING = {"activation_checkpointing": True}
SPECIAL: dict[str, Any] = {
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
T5: dict[str, Any] = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
# Of transformers, with a cache on by default: configs and models by name, and what makes them tiny.
LANGUAGE_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "Qwen": ("Qwen2Config", "Qwen2ForCausalLM", DECODER),
    "Mistral": ("MistralConfig", "MistralForCausalLM", DECODER | {"sliding_window": 4}),
    "Phi": ("PhiConfig", "PhiForCausalLM", DECODER),
    "Gemma 3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        DECODER | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "GPT-OSS": (
        "GptOssConfig",
        "GptOssForCausalLM",
        DECODER | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
    "OPT": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 16,
        },
    ),
    "Falcon": (
        "FalconConfig",
        "FalconForCausalLM",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
    "BLOOM": ("BloomConfig", "BloomForCausalLM", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "T5": ("T5Config", "T5ForConditionalGeneration", T5),
    "Switch": (
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
        T5 | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 2},
    ),
}


def _language_model(name: str) -> nn.Module:
    config, model, sizes = LANGUAGE_MODELS[name]
    made: nn.Module = getattr(transformers, model)(
        getattr(transformers, config)(**SPECIAL, **sizes)
    )
    return made


def _tokens(*, padded: bool) -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, 40, (8, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    if padded:
        mask[:, 4:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens}


def _engine(model: nn.Module, *, training: Any = None, **changes: Any) -> Engine:
    loss_fn, optimizer = changes.pop("loss_fn", None), changes.pop("optimizer", None)
    arguments = {"micro_batches": 2, "batch_size": 8, "precision": "float32", **changes}
    if optimizer is not None:
        arguments["optimizer"] = {"name": "client"}
    config = settings(**arguments) | {"training": training or {}}
    return initialize(model.train(), config=config, loss_fn=loss_fn, optimizer=optimizer)


def _after_a_step(build: Callable[[], nn.Module], batch: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    engine = _engine(build(), **changes)
    assert not engine.train_step(batch).skipped
    return engine.full_state_dict()


def _assert_close(one: Any, other: Any, **tolerance: float) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_compute_their_blocks_again(name: str) -> None:
    build, batch = partial(_language_model, name), _tokens(padded=True)
    plain = _after_a_step(build, batch)
    _assert_close(plain, _after_a_step(build, batch, training=CHECKPOINTING))


def test_the_cache_is_off_in_passes_alone() -> None:
    seen = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        output = model(**batch)
        seen.append((model.config.use_cache, output.past_key_values))
        return output.loss  # type: ignore[no-any-return]

    engine = _engine(_language_model("Llama"), loss_fn=loss_fn)
    engine.train_step(_tokens(padded=False))
    assert seen == [(False, None)] * 4
    assert engine.module.config.use_cache is True  # type: ignore[union-attr]
    caches = KeyValueCaches(engine.module)
    with pytest.raises(KeyError), caches.off():
        raise KeyError
    assert engine.module.config.use_cache is True  # type: ignore[union-attr]


def test_a_cache_that_is_asked_for_is_refused_where_blocks_are_computed_again() -> None:
    engine = _engine(_language_model("Llama"), training=CHECKPOINTING)
    with pytest.raises(UserError, match=r"called with cache=.*without use_cache=True"):
        engine.train_step({**_tokens(padded=True), "use_cache": True})


class Twice(nn.Module):
    """A block whose dropout, which all blocks share, is called twice; and so is the block."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout = dropout

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = self.dropout(self.first(features)).tanh()
        kept = torch.from_numpy(np.random.rand(8) < 0.7).float() * (random.random() + 0.5)
        return features + self.dropout(self.second(inner)) * kept


class Shared(nn.Module):
    """Runs its two blocks in turn, twice."""

    def __init__(self) -> None:
        super().__init__()
        dropout = nn.Dropout(0.4)
        self.blocks = nn.ModuleList(Twice(dropout) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            for block in self.blocks:
                features = block(features)
        return self.head(features)  # type: ignore[no-any-return]


def _features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(8, 8, generator=generator), torch.randint(5, (8,), generator=generator)


def test_a_layer_called_twice_is_computed_again() -> None:
    """With the masks of the same call, and the numbers of numpy's and Python's generators."""
    plain = _after_a_step(Shared, _features())
    _assert_close(plain, _after_a_step(Shared, _features(), training=CHECKPOINTING))
    _assert_close(
        plain, _after_a_step(Shared, _features(), training={"activation_checkpointing": 2})
    )


def test_layers_that_albert_shares_are_computed_again() -> None:
    def build() -> nn.Module:
        return transformers.AlbertForSequenceClassification(
            transformers.AlbertConfig(
                vocab_size=40,
                embedding_size=8,
                hidden_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=24,
                hidden_dropout_prob=0.3,
            )
        )

    batch = {**_tokens(padded=True), "labels": torch.arange(8) % 2}
    plain = _after_a_step(build, batch)
    _assert_close(plain, _after_a_step(build, batch, training=CHECKPOINTING))


class DrawsOnTheHost(nn.Module):
    """Masks its inputs by numpy's and Python's global generators, as SpecAugment does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)
        self.drawn: list[tuple[float, float]] = []

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.drawn.append((np.random.rand(), random.random()))
        return self.layer(features * self.drawn[-1][0])  # type: ignore[no-any-return]


def test_both_passes_draw_the_same_on_the_host(caplog: pytest.LogCaptureFixture) -> None:
    model = DrawsOnTheHost()
    engine = _engine(model, loss_fn=cross_entropy, chunk=2)
    np.random.seed(3)
    random.seed(4)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    engine.train_step(_features())
    first = list(model.drawn)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index, union-attr]
    # Two chunks a pass: ascent, ascent, descent, descent.
    assert first[:2] == first[2:4]
    assert first[4:6] == first[6:8]
    for numbers in zip(*first, strict=True):  # numpy's, then Python's
        assert len(set(numbers)) == 4
    assert "draws random numbers outside of Dropout" in caplog.text
    engine.train_step(_features())
    assert not set(first) & set(model.drawn[8:])


class Writes(nn.Module):
    """A linear layer that does something to itself in its forward."""

    def __init__(self, write: Callable[[Any], None]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)
        self.register_buffer("table", torch.tensor([1.0, float("nan")]))
        self.register_buffer("cache", torch.zeros(0), persistent=False)
        self.write = write

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.write(self)
        return self.layer(features)  # type: ignore[no-any-return]


def _same_value(model: Any) -> None:
    model.table = model.table.clone()
    model.table.copy_(model.table.clone())
    with torch.no_grad():
        model.layer.bias.mul_(1)


def _lazy_cache(model: Any) -> None:
    if not model.cache.numel():
        model.cache = torch.arange(4.0)


def _counts(model: Any) -> None:
    model.table += 1


def _normalises(model: Any) -> None:
    model.layer.weight.data = model.layer.weight.data / model.layer.weight.data.norm()


def _initialises(model: Any) -> None:
    if not model.cache.numel():
        model.cache = torch.ones(1)
        model.layer.weight.data.mul_(0.5)


def _replaces(model: Any) -> None:
    model.layer.bias = nn.Parameter(model.layer.bias.detach().clone())


@pytest.mark.parametrize("write", [_same_value, _lazy_cache])
def test_what_a_model_may_write(write: Callable[[Any], None]) -> None:
    engine = _engine(Writes(write), loss_fn=cross_entropy, algorithm="vanilla", micro_batches=None)
    for _ in range(3):
        assert not engine.train_step(_features()).skipped


@pytest.mark.parametrize(
    ("write", "name"),
    [(_counts, "table"), (_normalises, "weight"), (_initialises, "weight"), (_replaces, "bias")],
)
def test_what_a_model_must_not_write(write: Callable[[Any], None], name: str) -> None:
    engine = _engine(Writes(write), loss_fn=cross_entropy)
    with pytest.raises(UserError, match=f"{name}: the model writes to it"):
        engine.train_step(_features())


def test_rates_that_timm_gives_its_layers_are_kept() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5))
    groups = [
        {"params": model[0].parameters(), "lr_scale": 0.1},
        {"params": model[1].parameters(), "lr_scale": 1.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    engine = _engine(model, optimizer=optimizer, loss_fn=cross_entropy)
    for _ in range(2):
        engine.train_step(_features())
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.2])
    section = ScheduleSection(name="cosine", warmup=2)
    rates = bind_schedule(section, [{"lr": 0.2, "lr_scale": 0.1}, {"lr": 0.2}], num_steps=6)
    halves = [1 / 2, 1, 1, *((1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3))]
    for step, part in enumerate(halves):
        assert [group["lr"] for group in rates(step)] == pytest.approx([0.02 * part, 0.2 * part])


def test_rates_of_layers_go_through_deepspeeds_schedules() -> None:
    section = ScheduleSection(
        name="WarmupLR",
        args={"warmup_max_lr": 0.2, "warmup_num_steps": 4, "warmup_type": "linear"},
    )
    rates = bind_schedule(section, [{"lr": 0.2, "lr_scale": 0.1}, {"lr": 0.2}], num_steps=6)
    assert [group["lr"] for group in rates(5)] == pytest.approx([0.02, 0.2])


@pytest.mark.parametrize(
    ("sleepers", "words"),
    [
        ([""], "The model is in evaluation mode"),
        (["0", "1"], r"A part of the model \(0, 1\) is in evaluation mode"),
        ([], None),
        (["2"], None),  # a batch norm, frozen as is the custom
        (["3"], None),  # has nothing that is trained
    ],
)
def test_evaluation_mode_is_said_once(
    sleepers: list[str], words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 5).requires_grad_(False)
    )
    engine = _engine(model, loss_fn=cross_entropy)
    for name in sleepers:
        model.get_submodule(name).eval()
    for _ in range(2):
        engine.train_step(_features())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (words is not None)
    if words is not None:
        assert re.match(words, said[0])
        assert "engine.train()" in said[0]


def test_an_evaluation_that_leaves_the_model_there_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = _engine(nn.Linear(8, 5), loss_fn=cross_entropy)
    engine.train_step(_features())
    assert not caplog.records
    engine.eval()
    engine.train_step(_features())
    assert "The model is in evaluation mode" in caplog.text


@pytest.mark.parametrize("strategy", ["replicated", "fsdp"])
def test_parameters_of_the_loss_are_noticed(
    strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    scale = nn.Parameter(torch.ones(5))

    def own(model: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(scale * model(batch[0]), batch[1])

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5))

    engine = _engine(build(), loss_fn=own, strategy=strategy)
    for _ in range(2):
        engine.train_step(_features())
    (said,) = (record.getMessage() for record in caplog.records)
    assert (
        "loss_fn has trainable parameters that are not the model's (1 of them, of shapes (5,))"
        in said
    )
    caplog.clear()
    scale.requires_grad_(False)
    _engine(build(), loss_fn=own, strategy=strategy).train_step(_features())
    assert not caplog.records


def test_a_module_that_holds_model_and_loss_trains_both(caplog: pytest.LogCaptureFixture) -> None:
    """The way out that the message names."""

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.scale = nn.Linear(8, 5), nn.Parameter(torch.ones(5))

        def forward(self, batch: Any) -> torch.Tensor:
            return F.cross_entropy(self.scale * self.model(batch[0]), batch[1])

    engine = _engine(WithLoss(), loss_fn=lambda model, batch: model(batch))
    engine.train_step(_features())
    assert not bool((engine.full_state_dict()["scale"] == 1).any())
    assert not caplog.records


def _detection(size: int) -> dict[str, Any]:
    images = torch.randn(size, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    boxes = [torch.full((i % 3 + 1, 4), float(i)) for i in range(size)]
    return {
        "images": list(images),
        "targets": tuple({"boxes": one, "name": f"image {i}"} for i, one in enumerate(boxes)),
        "boxes": boxes,
        "names": [f"image {i}" for i in range(size)],
        "mask": None,
        "scale": 2.0,
        "mode": "train",
    }


def test_lists_with_one_entry_a_sample_are_cut_by_sample() -> None:
    seen: list[Any] = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        assert (batch["mask"], batch["scale"], batch["mode"]) == (None, 2.0, "train")
        assert all(isinstance(boxes, torch.Tensor) for boxes in batch["boxes"])
        for name, target, boxes in zip(
            batch["names"], batch["targets"], batch["boxes"], strict=True
        ):
            assert name == target["name"]
            assert target["boxes"].dtype is torch.float64  # moved and widened as tensors are
            assert torch.equal(target["boxes"], boxes)
        seen.extend(batch["names"])
        losses = [
            (model(image.flatten()) - target["boxes"].mean()).square().mean()
            for image, target in zip(batch["images"], batch["targets"], strict=True)
        ]
        return torch.stack(losses).mean()

    states = []
    for chunk in (None, 1, 3):
        seen.clear()
        torch.manual_seed(0)
        engine = _engine(nn.Linear(48, 5), loss_fn=loss_fn, chunk=chunk, precision="float64")
        engine._split_check._is_due = False  # which calls loss_fn, too
        engine.train_step(_detection(8))
        states.append(engine.full_state_dict())
        assert sorted(seen) == sorted(2 * _detection(8)["names"])  # once in each pass
    for state in states[1:]:
        _assert_close(states[0], state, rtol=1e-12, atol=1e-14)


def test_samples_that_were_never_collated_are_cut() -> None:
    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        inputs = torch.stack([one["x"] for one in batch])
        return F.cross_entropy(model(inputs), torch.stack([one["y"] for one in batch]))

    inputs, labels = _features()
    engine = _engine(nn.Linear(8, 5), loss_fn=loss_fn, chunk=1)
    engine.train_step([{"x": x, "y": y} for x, y in zip(inputs, labels, strict=True)])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (
            {"x": torch.zeros(8, 3), "boxes": [torch.zeros(i, 4) for i in range(1, 8)]},
            "may have one",
        ),
        ({"x": torch.zeros(8, 3), "size": (224, 224)}, r"batch\['size'\] has 2 plain values"),
        ({"x": torch.zeros(8, 3), "y": np.zeros(8)}, r"batch\['y'\] is a ndarray"),
        ({"x": torch.zeros(8, 3), "y": [torch.zeros(8)] * 8}, "a dict for each entry the former"),
        ({"x": None, "y": 3}, "holds no tensor"),
        ({"x": [torch.zeros(i) for i in range(1, 40)]}, r"batch\['x'\]\[5\]: 6, 33 more\)"),
    ],
)
def test_what_cannot_be_cut_is_refused(batch: Any, words: str) -> None:
    engine = _engine(nn.Linear(8, 5), loss_fn=cross_entropy)
    with pytest.raises(UserError, match=words):
        engine.train_step(batch)


def test_two_samples_are_not_mistaken_for_inputs_and_labels() -> None:
    engine = _engine(nn.Linear(8, 5), batch_size=2)
    inputs, labels = _features()
    assert not engine.train_step((inputs[:2], labels[:2])).skipped
    with pytest.raises(UserError, match="train_step's batch has 8 samples; rank 0 supplies 2"):
        engine.train_step((inputs, labels))


def test_a_micro_batch_without_labels_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    class MeanOverLabels(nn.Linear):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:  # type: ignore[override]
            return SimpleNamespace(loss=F.cross_entropy(super().forward(x), labels))

    engine = _engine(MeanOverLabels(8, 5))
    inputs, labels = _features()
    labels[:4] = -100
    step = engine.train_step({"x": inputs, "labels": labels})
    assert not step.skipped, "the other micro-batch has labels, and counts alone"
    assert math.isfinite(step.loss)
    labels[4:] = -100
    for _ in range(3):
        assert engine.train_step({"x": inputs, "labels": labels}).skipped
    said = [r.getMessage() for r in caplog.records if "is skipped" in r.getMessage()]
    assert [text.split()[1] for text in said] == ["2", "3"], "and the fourth, the eighth …"
    assert "all labels of a micro-batch are -100" in said[0]
    ((cause, count),) = engine.skipped_steps.by_cause.items()
    assert "all labels" in cause
    assert count == 3
    inputs[7] = float("inf")
    labels[:] = 1
    engine.train_step({"x": inputs, "labels": labels})
    assert sorted(engine.skipped_steps.by_cause.values()) == [1, 3]


def test_synchronised_batch_norm_is_answered_with_what_batch_norm_does_here() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    )
    with pytest.raises(UserError, match=r"1: SyncBatchNorm .*leave BatchNorm.*norm_samples"):
        _engine(model)


SPECTRAL: dict[str, Callable[[nn.Module], nn.Module]] = {
    "hook": spectral_norm,
    "parametrization": parametrizations.spectral_norm,
}


def _spectral(kind: str) -> nn.Module:
    layer = SPECTRAL[kind](nn.Linear(8, 8))
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(8, 5))


def _vectors(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for _, buffer in sorted(model.named_buffers())]


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_moves_its_vectors_once_a_step(kind: str) -> None:
    torch.manual_seed(0)
    model = _spectral(kind).double()
    plain = copy.deepcopy(model)
    engine = _engine(model, loss_fn=cross_entropy, chunk=1, precision="float64")
    inputs, labels = _features()
    for _ in range(3):
        plain.load_state_dict(engine.full_state_dict())
        plain[0](inputs.double())  # type: ignore[index, operator]
        engine.train_step((inputs, labels))
        assert all(
            torch.equal(one, other)
            for one, other in zip(_vectors(model), _vectors(plain), strict=True)
        )
        assert model[0].training  # type: ignore[index, union-attr]
    for bad in (float("nan"), None):  # a step that is skipped, and one that fails
        before = _vectors(model)
        if bad is not None:
            inputs[3] = bad
            assert engine.train_step((inputs, labels)).skipped
        else:
            with pytest.raises(IndexError):
                engine.train_step((inputs, labels + 5))
        for one, other in zip(_vectors(model), before, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm_does_not_depend_on_chunks(kind: str) -> None:
    whole, *others = (
        _after_a_step(
            partial(_spectral, kind),
            _features(),
            precision="float64",
            loss_fn=cross_entropy,
            **changes,
        )
        for changes in ({}, {"chunk": 1}, {"training": CHECKPOINTING})
    )
    for other in others:
        _assert_close(whole, other, rtol=1e-12, atol=1e-14)


def test_spectral_norm_serves_a_second_engine() -> None:
    model = _spectral("hook")
    for _ in range(2):
        engine = _engine(model, loss_fn=cross_entropy)
        before = _vectors(model)
        engine.train_step(_features())
        assert not torch.equal(before[0], _vectors(model)[0])
