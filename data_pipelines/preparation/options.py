"""Which options a data set takes, and what they may be."""

import os
from dataclasses import fields
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.preparation.recipe import DatasetRecipe, PreparationOptions
from data_pipelines.preparation.record import OptionValue, printable

DEFAULT_MAX_LENGTH = 128
# More is no number for the tokenizers' library.
_MOST_TOKENS = (1 << 31) - 1

_WORDS = {
    "source": "source",
    "val_fraction": "val-fraction",
    "tokenizer": "tokenizer",
    "max_length": "max-length",
    "text_columns": "text",
    "label_column": "label",
}
# What says where things are, not what they are.
_NOT_RECORDED = {"seed", "source"}


def checked_options(recipe: DatasetRecipe, options: PreparationOptions) -> None:
    """Checks that what a data set needs is given, and nothing that has no effect.

    Raises:
        UserError: Something is missing, has no effect, or is out of range.
    """
    required = recipe.required | ({"source"} if recipe.source else set())
    given = {name for name in _WORDS if getattr(options, name) is not None}
    missing = [_WORDS[name] for name in _WORDS if name in required - given]
    if missing:
        hint = f": {recipe.source}" if "source" in missing else ""
        raise UserError(f"data set {recipe.name!r} needs {' and '.join(missing)}{hint}")
    useless = [_WORDS[name] for name in _WORDS if name in given - required - recipe.optional]
    if useless:
        raise UserError(
            f"{' and '.join(useless)}: without effect for the data set {recipe.name!r}; "
            "leave it out"
        )
    _check_source(recipe, options)
    if options.val_fraction is not None and not 0 <= options.val_fraction < 1:
        raise UserError(f"val-fraction: {options.val_fraction} is not in [0, 1)")
    if options.max_length is not None and not 1 <= options.max_length <= _MOST_TOKENS:
        raise UserError(f"max-length: {options.max_length} is not in 1 … {_MOST_TOKENS}")
    if options.text_columns is not None and len(options.text_columns) not in (1, 2):
        raise UserError(
            f"text: {len(options.text_columns)} columns; name one, or two for a pair of texts"
        )


def options_of_record(recipe: DatasetRecipe, options: PreparationOptions) -> dict[str, OptionValue]:
    """Returns what the user chose as far as it decides the content, defaults filled in."""
    chosen: dict[str, OptionValue] = {}
    for name in (field.name for field in fields(options)):
        value = getattr(options, name)
        if name == "max_length" and value is None and name in recipe.optional:
            value = DEFAULT_MAX_LENGTH
        if value is not None and name not in _NOT_RECORDED:
            chosen[name] = tokenizer_name(value) if name == "tokenizer" else value
    return chosen


def tokenizer_name(tokenizer: str) -> str:
    """Returns how a tokenizer is recorded: its whole name on the hub, or the last part of its path.

    Where a folder lies must not change a byte; what is in it is recorded by checksums.
    """
    is_folder = os.path.isdir(tokenizer)  # noqa: PTH112 - `Path.is_dir` raises for long names
    return printable(Path(tokenizer).resolve().name if is_folder else tokenizer)


def _check_source(recipe: DatasetRecipe, options: PreparationOptions) -> None:
    if options.source is None:
        return
    try:
        options.source.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"source: {options.source} does not exist; {recipe.source}") from error
    except OSError as error:
        raise UserError(f"source: {options.source}: cannot be read: {error.strerror}") from error
    if recipe.source_is_folder and not options.source.is_dir():
        raise UserError(f"source: {options.source} is no folder; it has to be {recipe.source}")
