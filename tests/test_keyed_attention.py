"""Attention of transformers: its own numbers, and dropout masks that the layout does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
)

from data_pipelines import UserError
from msam_scale import initialize
from msam_scale.models import ModelRequest, build_model
from msam_scale.models.keyed_attention import keyed_attention

_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_BERT = {**_SIZES, "intermediate_size": 32, "vocab_size": 50, "pad_token_id": 1}
CONFIGS: dict[str, PretrainedConfig] = {
    "BERT": BertConfig(**_BERT, attention_probs_dropout_prob=0.3),
    "RoBERTa": RobertaConfig(**_BERT, attention_probs_dropout_prob=0.3),
    "DistilBERT": DistilBertConfig(
        dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=50, attention_dropout=0.3
    ),
    "GPT-2": GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=50, pad_token_id=1, attn_pdrop=0.3
    ),
    # Two key heads for four query heads; its attention drops without a layer of its own.
    "Llama": LlamaConfig(
        **{**_BERT, "num_attention_heads": 4}, num_key_value_heads=2, attention_dropout=0.0
    ),
}


@pytest.fixture(params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    CONFIGS[request.param].save_pretrained(tmp_path)
    return tmp_path


def built(folder: Path, **arguments: Any) -> Any:
    request = ModelRequest(str(folder), 3, kind="text", arguments=arguments)
    return build_model("transformers", request, seed=0).double()


def texts() -> dict[str, torch.Tensor]:
    """Eight texts of 3 … 10 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([10, 3, 7, 9, 4, 10, 5, 6])
    mask = (torch.arange(10) < lengths[:, None]).long()
    tokens = torch.randint(2, 50, (8, 10), generator=generator)
    labels = torch.randint(0, 3, (8,), generator=generator)
    return {
        "input_ids": torch.where(mask == 1, tokens, 1),
        "attention_mask": mask,
        "labels": labels,
    }


def test_without_dropout_it_is_the_models_own_attention(folder: Path) -> None:
    inputs = {name: tensor for name, tensor in texts().items() if name != "labels"}
    outputs = {}
    for attention in (None, "eager", "sdpa"):
        arguments = {} if attention is None else {"attn_implementation": attention}
        outputs[attention] = built(folder, **arguments).eval()(**inputs).logits
    torch.testing.assert_close(outputs[None], outputs["sdpa"], rtol=0, atol=1e-12)
    # Llama's eager softmax is in float32.
    torch.testing.assert_close(outputs[None], outputs["eager"], rtol=0, atol=1e-7)


def test_with_dropout_the_weights_are_those_of_fused_attention() -> None:
    """In evaluation mode the layer drops nothing, so all but the masks can be compared."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 6, generator=generator, dtype=torch.float64)
    mask = torch.zeros(2, 1, 5, 7, dtype=torch.float64)  # two places more than there are keys
    mask[1, :, :, 3:] = torch.finfo(torch.float64).min
    module = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Dropout(0.3)).eval()
    for heads, scaling in ((4, None), (4, 0.7), (2, None)):
        keys, values = key[:, :heads], value[:, :heads]
        found, weights = keyed_attention(
            module, query, keys, values, mask, scaling=scaling, dropout=0.3
        )
        expected = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask[..., :5], scale=scaling, enable_gqa=heads < 4
        )
        torch.testing.assert_close(found, expected.transpose(1, 2), rtol=0, atol=1e-12)
        assert weights is not None
        assert not weights[1, :, :, 3:].any()


def test_padding_does_not_change_a_text(folder: Path) -> None:
    model = built(folder).eval()
    padded = {name: tensor for name, tensor in texts().items() if name != "labels"}
    whole = model(**padded).logits
    for row, length in enumerate(padded["attention_mask"].sum(dim=1).tolist()):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in padded.items()}
        torch.testing.assert_close(model(**alone).logits[0], whole[row], rtol=0, atol=1e-12)


def _trained(folder: Path, *, chunk: int, **arguments: Any) -> dict[str, torch.Tensor]:
    engine = initialize(
        built(folder, **arguments),
        config={
            "run": {"seed": 3},
            "objective": {"algorithm": "msam", "micro_batches": 2, "rho": 0.5},
            "batch": {"size": 8, "chunk": chunk},
            "optimizer": {"name": "sgd", "lr": 0.5},
            "precision": "float64",
        },
    )
    for _ in range(2):
        engine.train_step(texts())
    return engine.full_state_dict()


def _difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    names = [name for name in one if one[name].is_floating_point()]
    return max(float((one[name] - other[name]).abs().max()) for name in names)


def test_masks_do_not_depend_on_chunks(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _difference(_trained(folder, chunk=3), _trained(folder, chunk=4)) < 1e-12
    assert "draws random numbers" not in caplog.text


def test_the_librarys_own_masks_would(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    CONFIGS["BERT"].save_pretrained(tmp_path)
    runs = [_trained(tmp_path, chunk=chunk, attn_implementation="sdpa") for chunk in (4, 1)]
    assert _difference(*runs) > 1e-4
    assert "draws random numbers" in caplog.text


def test_attention_weights_are_dropped(tmp_path: Path) -> None:
    CONFIGS["BERT"].save_pretrained(tmp_path)
    without = {"attention_probs_dropout_prob": 0.0}
    assert _difference(_trained(tmp_path, chunk=4), _trained(tmp_path, chunk=4, **without)) > 1e-4


def test_what_it_does_not_know_is_refused() -> None:
    heads = torch.randn(1, 2, 3, 4)
    with pytest.raises(UserError, match="softcap"):
        keyed_attention(torch.nn.Identity(), heads, heads, heads, None, softcap=30.0)
    keyed_attention(torch.nn.Identity(), heads, heads, heads, None, softcap=None)
