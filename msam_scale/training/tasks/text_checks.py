"""Whether a language model can take the tokens of a data set."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from data_pipelines.errors import UserError

_PREPARE_ANEW = "prepare the data with the model's own tokenizer (--tokenizer NAME)"


def check_tokens(
    model: nn.Module,
    *,
    rows: Sequence[str],
    pad_token_id: int,
    max_length: int,
    vocabulary: int | None,
) -> None:
    """Refuses data that some forward of the model would fail on, or take for something else.

    Args:
        model: of transformers.
        rows: what a token's numbers are, such as `input_ids`.
        pad_token_id: what texts are filled up with.
        max_length: tokens of the longest text.
        vocabulary: tokens of the data's tokenizer, where known.

    Raises:
        UserError: names what does not fit and what would.
    """
    config: Any = model.config
    taken = inspect.signature(model.forward).parameters
    if unknown := [row for row in rows if row not in taken]:
        raise UserError(
            f"model.name: {type(model).__name__} does not take the data's {', '.join(unknown)}; "
            f"{_PREPARE_ANEW}"
        )
    if "token_type_ids" in rows and getattr(config, "type_vocab_size", 2) < 2:
        raise UserError(
            f"model.name: {type(model).__name__} knows one type of token, and the data have two; "
            f"{_PREPARE_ANEW}"
        )
    # Models find the end of a text, and some the place of each token, by what fills up.
    if getattr(config, "pad_token_id", None) != pad_token_id:
        raise UserError(
            f"model.name: the model's pad_token_id is {getattr(config, 'pad_token_id', None)}, and "
            f"the data's texts are filled up with {pad_token_id}; {_PREPARE_ANEW}, or set "
            f"model.args.pad_token_id to {pad_token_id}"
        )
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    num_tokens = getattr(embedding, "num_embeddings", None)
    if vocabulary is not None and num_tokens is not None and vocabulary > num_tokens:
        raise UserError(
            f"model.name: the model knows {num_tokens} tokens, and the data's tokenizer has "
            f"{vocabulary}; {_PREPARE_ANEW}"
        )
    most = _most_positions(model, config)
    if most is not None and max_length > most:
        raise UserError(
            f"model.name: the model takes {most} tokens, and the longest text has {max_length}; "
            f"prepare the data with --max-length {most}"
        )


def _most_positions(model: nn.Module, config: Any) -> int | None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            # RoBERTa counts positions from the one after its padding's.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    most: int | None = getattr(config, "max_position_embeddings", None)
    return most
