"""Losses whose samples weigh differently, and losses that are no mean over samples at all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from engine_runs import settings
from torch import nn

from msam_scale import UserError, initialize
from msam_scale.losses import default_loss

NUM_SAMPLES, NUM_TOKENS = 8, 7


def tokens_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    """Samples with 1 to 7 tokens; one of them has none."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(NUM_SAMPLES, NUM_TOKENS, 5, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([1, 7, 0, 4, 2, 6, 3, 5])
    return tokens, (torch.arange(NUM_TOKENS) < lengths[:, None]).double()


def weighted_loss(model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum over tokens, and their number."""
    tokens, mask = batch
    return (model(tokens.flatten(0, 1)).square().sum(-1) * mask.flatten()).sum(), mask.sum()


def trained(loss_fn: Any, batch: Any, *, steps: int = 3, **config: Any) -> dict[str, Any]:
    """Weights and figures of a small linear model after some steps."""
    torch.manual_seed(0)
    engine = initialize(
        nn.Linear(5, 3).double(),
        config=settings(batch_size=NUM_SAMPLES, **config),
        loss_fn=loss_fn,
    )
    results = [engine.train_step(batch) for _ in range(steps)]
    figures = [(step.loss, step.grad_norm, step.ascent_norm) for step in results]
    return {"weights": engine.full_state_dict()["weight"], "figures": torch.tensor(figures)}


def by_hand(*, micro_batches: int, rho: float, steps: int = 3) -> dict[str, Any]:
    """The same by plain autograd: micro-batches count by their weight."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    parameters = list(model.parameters())
    tokens, mask = tokens_and_mask()
    figures = []
    for _ in range(steps):
        total = [torch.zeros_like(parameter) for parameter in parameters]
        loss = torch.zeros((), dtype=torch.float64)
        norms = []
        for part in zip(tokens.chunk(micro_batches), mask.chunk(micro_batches), strict=True):
            sum_, weight = weighted_loss(model, part)
            ascent = torch.autograd.grad(sum_ / weight, parameters)
            norm = torch.nn.utils.get_total_norm(ascent)
            norms.append(float(norm))
            loss += sum_.detach()
            before = [parameter.detach().clone() for parameter in parameters]
            with torch.no_grad():
                torch._foreach_add_(parameters, ascent, alpha=rho / float(norm))
            perturbed, _ = weighted_loss(model, part)
            torch._foreach_add_(total, torch.autograd.grad(perturbed, parameters))
            with torch.no_grad():
                torch._foreach_copy_(parameters, before)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient / mask.sum()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        figures.append((float(loss / mask.sum()), float(norm), sum(norms) / micro_batches))
        optimizer.step()
    return {"weights": model.weight.detach(), "figures": torch.tensor(figures)}


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("ascent", ["sam", "unnormalized"])
def test_micro_batches_count_by_their_weight(chunk: int | None, ascent: str) -> None:
    config = settings(micro_batches=4, chunk=chunk, batch_size=NUM_SAMPLES)
    if ascent == "sam":
        found = trained(weighted_loss, tokens_and_mask(), micro_batches=4, chunk=chunk)
        expected = by_hand(micro_batches=4, rho=0.1)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        return
    # ε is ρ times the gradient of the micro-batch's mean, so its own weight shows.
    config["objective"]["ascent"] = "unnormalized"
    whole, chunked = (
        trained_with({**config, "batch": {**config["batch"], "chunk": size}}) for size in (None, 1)
    )
    torch.testing.assert_close(whole, chunked, rtol=1e-12, atol=1e-14)
    config["objective"]["ascent"] = "sam"
    assert not torch.allclose(whole, trained_with(config))


def trained_with(config: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)
    engine = initialize(nn.Linear(5, 3).double(), config=config, loss_fn=weighted_loss)
    engine.train_step(tokens_and_mask())
    return engine.full_state_dict()["weight"]


def test_radius_zero_is_vanilla_for_every_number_of_micro_batches() -> None:
    vanilla = trained(weighted_loss, tokens_and_mask(), algorithm="vanilla")
    for micro_batches in (1, 2, 4):
        found = trained(weighted_loss, tokens_and_mask(), micro_batches=micro_batches, rho=0.0)
        torch.testing.assert_close(found["weights"], vanilla["weights"], rtol=1e-12, atol=1e-14)


def test_a_micro_batch_without_weight_changes_nothing_and_a_mini_batch_without_is_skipped() -> None:
    tokens, mask = tokens_and_mask()
    mask[2:4] = 0  # all of the second of four micro-batches
    found = trained(weighted_loss, (tokens, mask), micro_batches=4)
    assert found["figures"].isfinite().all()
    engine = initialize(
        nn.Linear(5, 3).double(),
        config=settings(micro_batches=4, batch_size=NUM_SAMPLES),
        loss_fn=weighted_loss,
    )
    before = engine.full_state_dict()
    assert engine.train_step((tokens, torch.zeros_like(mask))).skipped
    assert all(engine.full_state_dict()[name].equal(before[name]) for name in before)


def test_pairs_of_sum_and_number_are_means() -> None:
    batch = torch.randn(NUM_SAMPLES, 5, dtype=torch.float64), torch.randint(3, (NUM_SAMPLES,))

    def mean(model: Any, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def pair(model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        count = torch.tensor(len(batch[1]))
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), count

    found, expected = (trained(f, batch, micro_batches=2, clip_norm=0.1) for f in (pair, mean))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def _model(kind: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A small model of transformers, and a padded batch for it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    tokens = torch.randint(3, 32, (NUM_SAMPLES, NUM_TOKENS))
    lengths = torch.tensor([2, 7, 3, 4, 5, 6, 3, 5])
    mask = (torch.arange(NUM_TOKENS) < lengths[:, None]).long()
    labels = tokens.masked_fill(mask == 0, -100)
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    if kind == "causal":
        config = transformers.LlamaConfig(**sizes, intermediate_size=32)
        return transformers.LlamaForCausalLM(config), batch
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=32, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
        return transformers.GPT2LMHeadModel(config), batch
    if kind == "encoder-decoder":
        config = transformers.T5Config(
            **{"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1},
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
        return transformers.T5ForConditionalGeneration(config), batch
    bert = transformers.BertConfig(
        **sizes, intermediate_size=32, hidden_dropout_prob=0, attention_probs_dropout_prob=0
    )
    if kind == "masked":
        return transformers.BertForMaskedLM(bert), batch
    batch["labels"] = torch.tensor([0, 1, -100, 1, 0, -100, -100, 1])
    return transformers.BertForSequenceClassification(bert), batch


@pytest.mark.parametrize("kind", ["causal", "gpt2", "encoder-decoder", "masked", "classification"])
def test_models_of_transformers_weigh_by_their_labels(kind: str) -> None:
    states = []
    for chunk in (None, 1):
        model, batch = _model(kind)
        engine = initialize(
            model.double().train(),
            config=settings(micro_batches=2, batch_size=NUM_SAMPLES, chunk=chunk, check_split=True),
        )
        for _ in range(2):
            engine.train_step(batch)
        states.append(engine.full_state_dict())
    assert all(torch.isfinite(tensor).all() for tensor in states[0].values())
    torch.testing.assert_close(states[0], states[1], rtol=1e-9, atol=1e-11)


def contrastive(model: Any, batch: Any) -> torch.Tensor:
    """CLIP's loss: every sample is compared with all others."""
    one, other = (F.normalize(model(part)) for part in batch)
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def _contrastive_engine(**batch: Any) -> tuple[Any, Any]:
    config = settings(micro_batches=2, batch_size=NUM_SAMPLES, check_split=True)
    config["batch"].update(batch)
    engine = initialize(nn.Linear(5, 4).double(), config=config, loss_fn=contrastive)
    return engine, tuple(torch.randn(NUM_SAMPLES, 5, dtype=torch.float64) for _ in range(2))


def test_a_loss_that_is_no_mean_is_refused_where_it_would_be_split() -> None:
    engine, batch = _contrastive_engine(chunk=2)
    before = engine.full_state_dict()
    with pytest.raises(UserError, match=r"no mean over independent samples.*batch\.chunk: 2") as e:
        engine.train_step(batch)
    assert "Use batch.chunk: 4" in str(e.value)
    assert "batch.check_split: false" in str(e.value)
    assert all(engine.full_state_dict()[name].equal(before[name]) for name in before)


@pytest.mark.parametrize("batch", [{}, {"chunk": 4}, {"chunk": 1, "check_split": False}])
def test_it_trains_whole_or_where_the_check_is_off(batch: dict[str, Any]) -> None:
    engine, samples = _contrastive_engine(**batch)
    assert math.isfinite(engine.train_step(samples).loss)


def test_a_loss_that_is_random_in_evaluation_mode_is_not_judged() -> None:
    def noisy(model: Any, batch: Any) -> torch.Tensor:
        inputs, labels = batch
        return F.cross_entropy(model(F.dropout(inputs, 0.5)), labels)

    config = settings(micro_batches=2, batch_size=NUM_SAMPLES, chunk=2, check_split=True)
    engine = initialize(nn.Linear(5, 3).double(), config=config, loss_fn=noisy)
    inputs = torch.randn(NUM_SAMPLES, 5, dtype=torch.float64)
    assert not engine.train_step((inputs, torch.arange(NUM_SAMPLES) % 3)).skipped


def test_the_check_leaves_modes_and_random_numbers_alone() -> None:
    def run(check: bool) -> tuple[dict[str, torch.Tensor], list[bool]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
        model[2].eval()
        config = settings(micro_batches=2, batch_size=NUM_SAMPLES, chunk=2)
        config["batch"]["check_split"] = check
        engine = initialize(model, config=config)
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(NUM_SAMPLES, 5, generator=generator, dtype=torch.float64)
        engine.train_step((inputs, torch.arange(NUM_SAMPLES) % 3))
        return engine.full_state_dict(), [module.training for module in model.modules()]

    (states, modes), (expected, expected_modes) = run(True), run(False)
    assert all(states[name].equal(expected[name]) for name in expected)
    assert modes == expected_modes


@pytest.mark.parametrize("returned", [3.0, (torch.ones(2), torch.ones(())), (torch.ones(()), 4)])
def test_what_is_no_loss_is_refused(returned: Any) -> None:
    engine = initialize(
        nn.Linear(5, 3).double(),
        config=settings(micro_batches=1, batch_size=2),
        loss_fn=lambda *_: returned,
    )
    with pytest.raises(UserError, match=r"loss_fn returned a .*\(sum, weight\)"):
        engine.train_step((torch.randn(2, 5).double(), torch.zeros(2)))


def test_the_default_loss_of_scores_is_a_mean_over_samples() -> None:
    class Scores(nn.Module):
        def forward(self, labels: torch.Tensor) -> Any:
            return transformers.modeling_outputs.SequenceClassifierOutput(loss=labels.mean())

    found = default_loss(label_smoothing=0.0)(Scores(), {"labels": torch.tensor([1.0, 2.0])})
    assert isinstance(found, torch.Tensor)
    assert float(found) == 1.5
