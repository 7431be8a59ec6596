"""`dataset.json`: what a prepared folder holds and what it was made from."""

from pathlib import Path

import pydantic

from data_pipelines.durable_files import replace_file
from data_pipelines.errors import UserError

RECORD_FILE = "dataset.json"
NEVER_OVERWRITTEN = "it is never overwritten: remove it or choose another folder"

OptionValue = str | int | float | tuple[str, ...]


def printable(text: str) -> str:
    r"""Returns a text in which bytes of file names that are not UTF-8 are written as `\udcXX`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class TokenizerRecord(pydantic.BaseModel):
    """The tokenizer that made the tokens of a text data set.

    Attributes:
        name: Its hub name, or the last part of its path.
        files: SHA-256 of each of its files, by name.
        rows: What the rows of a sample's tokens are, such as `input_ids`.
        max_length: Longer texts were cut to so many tokens.
        vocab_size: Token numbers are below this.
        pad_token_id: What to fill shorter texts up with; None when the tokenizer has no such token.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    files: dict[str, str]
    rows: tuple[str, ...]
    max_length: int
    vocab_size: int
    pad_token_id: int | None


class DatasetRecord(pydantic.BaseModel):
    """What dataset.json says.

    Attributes:
        name: The data set's.
        seed: Of the split and the shuffle.
        fingerprints: Of each split's index.
        options: What else the user chose, as far as it decides the content.
        class_names: Name of each class, where the input names them.
        sources: Sizes and checksums of what it was made from.
        notes: What was left out, cut, or is not as published.
        tokenizer: What made the tokens, for text.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    seed: int
    fingerprints: dict[str, str]
    options: dict[str, OptionValue] = {}
    class_names: tuple[str, ...] | None = None
    sources: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    tokenizer: TokenizerRecord | None = None

    @classmethod
    def read(cls, directory: Path) -> "DatasetRecord":
        """Reads the record of a prepared folder.

        Raises:
            UserError: The folder has none, or it is damaged.
        """
        path = directory / RECORD_FILE
        if not path.is_file():
            raise UserError(
                f"{directory}: holds something that is no prepared data set; {NEVER_OVERWRITTEN}"
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, pydantic.ValidationError) as error:
            raise UserError(f"{path}: damaged; {NEVER_OVERWRITTEN}") from error

    def write(self, directory: Path) -> None:
        """Writes the record; what has its default is left out."""
        text = self.model_dump_json(indent=1, exclude_defaults=True) + "\n"
        replace_file(directory / RECORD_FILE, text.encode("utf-8"))
