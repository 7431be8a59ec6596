"""Batches of text: filled up to the longest of the micro-batch, wherever its parts are loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shards import TOKENS, indexed, make_texts, npy, write_shards

from data_pipelines import (
    EvaluationLoader,
    MicroBatchLoader,
    SampleIndex,
    ShardReader,
    UserError,
    transform_preset,
)

BATCH_SIZE = 8


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return make_texts(tmp_path_factory.mktemp("texts") / "train", 45)


def make_loader(index: SampleIndex, positions: Any, **changes: Any) -> MicroBatchLoader:
    settings: dict[str, Any] = {
        "order": "global",
        "seed": 5,
        "batch_size": BATCH_SIZE,
        "transform": None,
        "num_workers": 0,
        "first_step": 0,
        "num_steps": 7,
        "micro_batches": 2,
        **changes,
    }
    return MicroBatchLoader(index, positions=positions, **settings)


def test_index_knows_lengths_and_rows(texts: SampleIndex) -> None:
    assert texts.meta.tokens == TOKENS
    assert texts.image_shape is None
    assert texts.lengths is not None
    lengths = [sample.tokens.shape[1] for _, sample in ShardReader(texts).read(range(45))]
    assert texts.lengths.tolist() == lengths
    assert len(set(lengths)) > 1
    assert SampleIndex.open(texts.directory).fingerprint == texts.fingerprint


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_the_texts_and_fillers(texts: SampleIndex, num_workers: int) -> None:
    assert texts.lengths is not None
    samples = dict(ShardReader(texts).read(range(45)))
    num_full = 0
    for batch in make_loader(texts, [range(4), range(4, 8)], num_workers=num_workers):
        assert list(batch) == ["input_ids", "token_type_ids", "attention_mask", "labels"]
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        numbers = (batch["input_ids"][:, 0] - 100).tolist()
        longest = int(texts.lengths[numbers].max())
        assert batch["input_ids"].shape == (4, longest)
        assert batch["labels"].tolist() == [number % 2 for number in numbers]
        for row, number in enumerate(numbers):
            tokens, length = samples[number].tokens, int(texts.lengths[number])
            num_full += length == longest
            assert np.array_equal(batch["input_ids"][row, :length], tokens[0])
            assert np.array_equal(batch["token_type_ids"][row, :length], tokens[1])
            assert batch["input_ids"][row, length:].tolist() == [9] * (longest - length)
            assert batch["token_type_ids"][row, length:].tolist() == [0] * (longest - length)
            mask = [1] * length + [0] * (longest - length)
            assert batch["attention_mask"][row].tolist() == mask
    assert num_full < 4 * 14, "something was filled up"


def joined(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.layouts
def test_parts_of_a_micro_batch_are_filled_up_alike(texts: SampleIndex) -> None:
    whole = make_loader(texts, [range(4), range(4, 8)])
    parts = make_loader(texts, [[0], [1, 2], [3], [4, 5], [6, 7]])
    pieces = iter(parts)
    for number, first in enumerate(whole):
        second = joined([next(pieces) for _ in range(2 if number % 2 else 3)])
        assert all(torch.equal(first[name], second[name]) for name in first)
    # Alone, the parts would be shorter somewhere.
    alone = make_loader(texts, [[0], [1]], batch_size=2, micro_batches=2, num_steps=20)
    assert len({batch["input_ids"].shape[1] for batch in alone}) > 3


def test_evaluation_fills_up_to_the_longest_of_a_block(texts: SampleIndex) -> None:
    assert texts.lengths is not None
    blocks = list(
        EvaluationLoader(texts, batch_size=10, rank=0, num_ranks=1, transform=None, num_workers=0)
    )
    numbers = [(block["input_ids"][:, 0] - 100).tolist() for block in blocks]
    assert [number for block in numbers for number in block] == list(range(45))
    assert [block["input_ids"].shape[1] for block in blocks] == [
        int(texts.lengths[start : start + 10].max()) for start in range(0, 45, 10)
    ]


def test_what_text_cannot_have_is_refused(texts: SampleIndex) -> None:
    with pytest.raises(UserError, match=r"transform: cifar_basic is for images, but .* holds text"):
        make_loader(texts, [range(4)], transform=transform_preset("cifar_basic"))
    make_loader(texts, [range(4)], transform=transform_preset("none"))
    with pytest.raises(UserError, match=r"resident: .* holds no images of one size"):
        list(make_loader(texts, [range(4)], resident=True))


def tokens_of(*shapes: tuple[int, int]) -> list[dict[str, bytes]]:
    return [{"tokens.npy": npy(np.ones(shape, np.int32)), "cls": b"0"} for shape in shapes]


def test_tokens_without_meaning_are_refused(tmp_path: Path) -> None:
    for name, shapes, tokens, message in (
        ("a", [(1, 3), (2, 3)], None, r"its samples differ in the number of rows of their tokens"),
        ("b", [(3, 3)], None, r"its tokens have 3 rows, but names for them: none"),
        ("c", [(1, 3)], TOKENS, r"have 1 rows, but names for them: input_ids, token_type_ids"),
    ):
        with pytest.raises(UserError, match=message):
            indexed(write_shards(tmp_path / name, tokens_of(*shapes)), tokens=tokens)


def test_one_row_is_the_token_numbers(tmp_path: Path) -> None:
    index = indexed(write_shards(tmp_path / "made", tokens_of((1, 3), (1, 3))))
    (batch,) = make_loader(index, [range(2)], batch_size=2, micro_batches=1, num_steps=1)
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
