"""`film_reviews`: sentences of film reviews and whether people find them positive.

From C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text" (ICWSM 2014), which the package vaderSentiment brings: 10 605 sentences of Pang
and Lee's reviews, each with the mean rating of twenty people from -4 to 4. Much like SST-2, which
has its labels from the same reviews.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.preparation.gzipped_tars import gzipped_files
from data_pipelines.preparation.recipe import DatasetRecipe, OpenedDataset, PreparationOptions
from data_pipelines.preparation.staging import described_file, staged, unchanged_file
from data_pipelines.preparation.text_datasets import open_texts
from data_pipelines.preparation.text_rows import TextFile, no_utf8
from data_pipelines.progress import Progress

_RATINGS = "movieReviewSnippets_GroundTruth.txt"
_TABLE, _NUM_NEUTRAL = "film-reviews.csv", "num_neutral.txt"
_INNER = "hutto_ICWSM_2014.tar.gz"
_CLASSES = {"negative": 0, "positive": 1}
_NUM_ROWS = 10605
_VAL_FRACTION = 0.2
# A hundred times what the published file has.
_MOST_BYTES = 64 << 20
_SOURCE = (
    f"the source distribution of vaderSentiment 3.3.2 (.tar.gz), or {_RATINGS} of its archive "
    f"{_INNER}"
)


def _open(options: PreparationOptions, scratch: Path, progress: Progress) -> OpenedDataset:
    source = options.source
    assert source is not None, "the recipe requires it"
    folder = staged(
        scratch / "table",
        made_from={"source": unchanged_file(source)},
        make=lambda folder: _write_table(source, folder),
    )
    dataset = open_texts(
        {"train": [TextFile(folder / _TABLE, text_columns=("text",), label_column="label")]},
        classes=_CLASSES,
        class_names=tuple(_CLASSES),
        options=options,
        scratch=scratch,
        progress=progress,
        default_val_fraction=_VAL_FRACTION,
    )
    notes = list(dataset.notes)
    num_neutral = int((folder / _NUM_NEUTRAL).read_text(encoding="ascii"))
    if num_neutral:
        notes.append(f"left out {num_neutral} sentences rated 0, neither positive nor negative")
    found = num_neutral + sum(split.num_samples for split in dataset.splits.values())
    if found != _NUM_ROWS:
        notes.append(f"{found} sentences, the published set has {_NUM_ROWS}")
    return replace(dataset, sources=_describe(options, scratch, progress), notes=tuple(notes))


def _describe(options: PreparationOptions, scratch: Path, progress: Progress) -> dict[str, str]:
    assert options.source is not None, "the recipe requires it"
    return {options.source.name: described_file(options.source)}


def _write_table(source: Path, folder: Path) -> None:
    num_neutral = 0
    with (folder / _TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for rating, sentence in _rows(source):
            if rating == 0:
                num_neutral += 1
            else:
                writer.writerow([sentence, "positive" if rating > 0 else "negative"])
    (folder / _NUM_NEUTRAL).write_text(str(num_neutral), encoding="ascii")


def _rows(source: Path) -> Iterator[tuple[float, str]]:
    """The ratings and their sentences.

    Raises:
        UserError: it is another file, or a line is none of id, rating and text.
    """
    if source.is_dir():
        raise UserError(f"source: {source} is a folder; it has to be {_SOURCE}")
    if source.stat().st_size > _MOST_BYTES:
        raise UserError(f"{source}: larger than it can be; it has to be {_SOURCE}")
    content = source.read_bytes()
    if source.name.endswith(".gz"):
        content = _member(content, f"/{_INNER}", source)
        content = _member(content, f"/{_RATINGS}", source)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        for number, each in enumerate(content.split(b"\n"), start=1):
            if (wrong := no_utf8(each, where=f"{source}: {_RATINGS}, line {number}")) is not None:
                raise wrong from None
        raise
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            _, rating, sentence = line.split("\t")
            yield float(rating), sentence.strip()
        except ValueError:
            raise UserError(
                f"{source}: line {number} is not `id<TAB>rating<TAB>text`: {line[:80]!r}"
            ) from None


def _member(archive: bytes, ending: str, source: Path) -> bytes:
    """The one file of a gzipped tar whose path ends so; nothing is unpacked to disk."""
    try:
        files = gzipped_files(
            archive,
            name=str(source),
            is_wanted=lambda name: name.endswith(ending),
            most_bytes=_MOST_BYTES,
        )
        _, content = next(files, ("", None))
    except UserError as error:
        raise UserError(f"{error}; it has to be {_SOURCE}") from error
    if content is None:
        raise UserError(f"{source}: holds no {ending[1:]}; it has to be {_SOURCE}")
    return content


FILM_REVIEWS = DatasetRecipe(
    name="film_reviews",
    description="10 605 sentences of film reviews, positive or negative, rated by people",
    open=_open,
    describe=_describe,
    source=_SOURCE,
    required=frozenset({"tokenizer"}),
    optional=frozenset({"max_length", "val_fraction"}),
)
