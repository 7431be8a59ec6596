"""Texts turned into token numbers once, by a tokenizer of the transformers library."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.durable_files import sha256_of_file
from data_pipelines.errors import UserError, a_few
from data_pipelines.preparation.array_images import encode_npy, mapped_array
from data_pipelines.preparation.options import tokenizer_name
from data_pipelines.preparation.recipe import EncodedSample
from data_pipelines.preparation.record import TokenizerRecord
from data_pipelines.preparation.text_rows import TextRow
from data_pipelines.progress import Progress

_ROWS_AT_ONCE = 1000
# The attention mask is all ones before padding, so nobody stores it.
_STORED_ROWS = ("input_ids", "token_type_ids")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOKENS_FILE, _RECORDS_FILE = "tokens.npy", "records.npy"
_RECORD = np.dtype([("start", "<u8"), ("length", "<u4"), ("label", "<i4")])


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer, and what the record says about it."""

    library_tokenizer: Any
    record: TokenizerRecord

    def check_max_length(self, *, num_texts: int) -> list[str]:
        """Checks that samples of `num_texts` texts each can be cut to the greatest length.

        Returns:
            What a user should know about it.

        Raises:
            UserError: It leaves no room for a token of each text beside the special ones; the
                library would then cut nothing.
        """
        given = self.record.max_length
        is_pair = num_texts == 2
        num_special = self.library_tokenizer.num_special_tokens_to_add(pair=is_pair)
        least = num_special + num_texts
        if given < least:
            raise UserError(
                f"max-length: {given}, but {least} or more are needed: {num_special} special "
                f"tokens and one {'of each text' if is_pair else 'of the text'}"
            )
        most = self.library_tokenizer.model_max_length
        if given <= most:
            return []
        return [
            f"max-length {given} is more than the {most} tokens that the tokenizer's model takes"
        ]


@dataclass(frozen=True)
class TokenisedTexts:
    """Token numbers by the number of the text; sent to other processes as the path of their file.

    Attributes:
        folder: What `tokenise` has filled.
        num_rows: How many numbers a token has, see `TokenizerRecord.rows`.
        file_name: Of the texts, for messages.
    """

    folder: Path
    num_rows: int
    file_name: str

    def __len__(self) -> int:
        return len(mapped_array(self.folder / _RECORDS_FILE))

    @property
    def num_bytes(self) -> int:
        """How many bytes all tokens have together."""
        return int(mapped_array(self.folder / _TOKENS_FILE).nbytes)

    def read(self, places: NDArray[np.int64]) -> Iterator[EncodedSample]:
        """Yields the samples at `places`."""
        records = mapped_array(self.folder / _RECORDS_FILE)
        tokens = mapped_array(self.folder / _TOKENS_FILE)
        for number in places.tolist():
            start, length = int(records["start"][number]), int(records["length"][number])
            rows = tokens[start : start + self.num_rows * length].reshape(self.num_rows, length)
            yield EncodedSample(
                key=f"{number:08d}",
                columns={
                    "tokens.npy": encode_npy(rows),
                    "cls": str(int(records["label"][number])).encode("ascii"),
                },
                origin=f"{self.file_name}, row {number}",
            )


def load_tokenizer(name: str, *, max_length: int) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        name: Its name on the Hugging Face hub, or a folder.
        max_length: Longer texts will be cut to so many tokens, special ones included.

    Raises:
        UserError: It cannot be loaded, or is one of the slow kind without offsets.
    """
    from transformers import AutoTokenizer  # takes seconds
    from transformers.utils.hub import cached_file

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    # The library raises OSError, ValueError, ImportError and others, with words for people.
    except Exception as error:
        words = " ".join(str(error).split())
        raise UserError(f"tokenizer: {name!r} cannot be loaded: {words[:300]}") from error
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer: {name!r} has no fast version (tokenizer.json)")
    file_names = sorted({*_TOKENIZER_FILES, *tokenizer.vocab_files_names.values()})
    paths = {
        file_name: cached_file(name, file_name, _raise_exceptions_for_missing_entries=False)
        for file_name in file_names
    }
    record = TokenizerRecord(
        name=tokenizer_name(name),
        files={
            file_name: sha256_of_file(Path(path))
            for file_name, path in paths.items()
            if path is not None
        },
        rows=tuple(row for row in _STORED_ROWS if row in tokenizer.model_input_names),
        max_length=max_length,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    return Tokenizer(library_tokenizer=tokenizer, record=record)


def tokenise(
    folder: Path,
    *,
    rows: Iterable[TextRow],
    classes: Mapping[str, int],
    file_name: str,
    tokenizer: Tokenizer,
    progress: Progress,
) -> int:
    """Writes the tokens of all rows into `folder`, holding a thousand rows at a time.

    Args:
        folder: An existing folder.
        rows: The texts.
        classes: The class number by the label as it is written.
        file_name: Where the rows come from, for messages.
        tokenizer: Turns texts into tokens.
        progress: Is told how far it is.

    Returns:
        How many texts were cut to the greatest length.

    Raises:
        UserError: A label is none of `classes`, or there are no rows.
    """
    waiting = iter(rows)
    num_rows = len(tokenizer.record.rows)
    start = num_texts = num_cut = 0
    tokens_file, records_file = folder / "tokens.bin", folder / "records.bin"
    with tokens_file.open("xb") as tokens, records_file.open("xb") as records:
        while batch := list(islice(waiting, _ROWS_AT_ONCE)):
            for row in batch:
                if row.label not in classes:
                    raise UserError(
                        f"{file_name}: line {row.line}: label {row.label!r} is none of "
                        f"{a_few(classes)}"
                    )
            encoded, cut = _encode([row.texts for row in batch], tokenizer)
            num_cut += cut
            for row, arrays in zip(batch, encoded, strict=True):
                content = np.array(arrays, "<i4")
                tokens.write(content.tobytes())
                record = (start, content.shape[1], classes[row.label])
                records.write(np.array(record, _RECORD).tobytes())
                start += content.size
            num_texts += len(batch)
            progress(f"tokenising {file_name}", done=num_texts, total=None, unit="texts")
    assert num_rows, "every tokenizer gives input_ids"
    if not num_texts:
        raise UserError(f"{file_name}: holds no rows")
    _to_npy(tokens_file, np.dtype("<i4"), folder / _TOKENS_FILE)
    _to_npy(records_file, _RECORD, folder / _RECORDS_FILE)
    return num_cut


def _encode(
    texts: list[tuple[str, ...]], tokenizer: Tokenizer
) -> tuple[list[list[list[int]]], int]:
    firsts, *seconds = (list(column) for column in zip(*texts, strict=True))
    encoded = tokenizer.library_tokenizer(
        firsts,
        *seconds,
        truncation=True,
        max_length=tokenizer.record.max_length,
        return_attention_mask=False,
    )
    rows = [encoded[row] for row in tokenizer.record.rows]
    num_cut = sum(bool(each.overflowing) for each in encoded.encodings)
    return [list(arrays) for arrays in zip(*rows, strict=True)], num_cut


def _to_npy(raw: Path, dtype: np.dtype[Any], path: Path) -> None:
    np.save(path, np.memmap(raw, dtype, mode="r"), allow_pickle=False)
    raw.unlink()
