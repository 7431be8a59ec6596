"""Tables that are half-written, have odd labels, or are not what a spreadsheet would write."""

import functools
from collections.abc import Callable
from pathlib import Path

import archives
import pytest

from data_pipelines import PreparedDataset, SampleIndex, UserError, prepare
from data_pipelines.preparation.record import DatasetRecord
from data_pipelines.preparation.text_classes import class_numbers
from data_pipelines.preparation.text_rows import TextFile

Prepare = Callable[..., PreparedDataset]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny-bert"
    archives.write_tokenizer(folder)
    return folder


@pytest.fixture
def prepare_table(tmp_path: Path, tokenizer: Path) -> Prepare:
    return functools.partial(
        prepare, "table", out=tmp_path / "out", tokenizer=str(tokenizer), val_fraction=0
    )


def table(path: Path, content: str) -> TextFile:
    path.write_text(content, encoding="utf-8", newline="")
    return TextFile(path, text_columns=("text",), label_column="label")


def rows(*labels: str) -> str:
    return "text\tlabel\n" + "".join(f"w{label}\t{label}\n" for label in labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Cut within the label, with and without the rest of it.
        (rows("0", "1", "0") + "w50\t", r"line 5: the label is empty: cut short"),
        (rows("0", "1", "10", "10") + "w\t1", r"ends within a line, so its last row may be cut"),
        (rows("good", "bad", "bad", "good") + "w\tgo", r"ends within a line"),
        (rows("0", "1", "0") + "w\t\n", r"line 5: the label is empty: cut short, or a row without"),
        (rows("0", "1", "0") + "w\t  \n", r"line 5: the label is empty"),
        # A few words among numbers, or numbers among words: named with the line of the rarer.
        (rows("0", "1", "0", "x", "1"), r"line 5: the label is 'x', but '0' in line 2 of"),
        (rows("a", "b", "7", "b"), r"line 4: the label is '7', but 'a' in line 2 of"),
        (rows("100000"), r"line 2: 100000 is no class number: those are below 100000"),
    ],
)
def test_labels_that_would_shift_the_classes_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"some.tsv: {message}"):
        class_numbers([table(tmp_path / "some.tsv", content)])


def test_text_that_may_be_cut_is_refused(tmp_path: Path) -> None:
    file = table(tmp_path / "some.tsv", "label\ttext\n0\ta dog\n1\ta ca")
    with pytest.raises(UserError, match=r"ends within a line.* add a line break at its end"):
        class_numbers([file])
    assert class_numbers([table(file.path, "label\ttext\tid\n0\ta dog\t1\n1\ta cat\t12")]) == {
        "0": 0,
        "1": 1,
    }


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        (rows("0 ", " 1", "0"), {"0": 0, "1": 1}),
        (rows("b", "a ", "a"), {"a": 0, "b": 1}),
        (rows("-1", "1"), {"-1": 0, "1": 1}),
        # The last label cannot be a part of another one.
        (rows("0", "1") + "w\t1", {"0": 0, "1": 1}),
        (rows("0", "1") + "w\t1\r", {"0": 0, "1": 1}),
    ],
)
def test_labels_that_can_be_believed(tmp_path: Path, content: str, classes: dict[str, int]) -> None:
    assert class_numbers([table(tmp_path / "some.tsv", content)]) == classes


def test_spaces_around_labels_are_no_part_of_them(tmp_path: Path, prepare_table: Prepare) -> None:
    path = tmp_path / "some.tsv"
    path.write_text("text\tlabel\nthe cat\t0 \na dog\t0\na mat\t1\n")
    made = prepare_table(source=path, text_columns=("text",), label_column="label")
    assert made.class_counts == {"train": (2, 1)}


@pytest.mark.parametrize("label_names", [("0", "1"), ("no", "yes")])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_columns_of_a_file_without_header_are_counted(
    tmp_path: Path, prepare_table: Prepare, ending: str, label_names: tuple[str, str]
) -> None:
    separator = {"csv": ",", "tsv": "\t"}[ending]
    path = tmp_path / f"some.{ending}"
    archives.write_lines(
        path, [separator.join(["id", label, "a", "the cat"]) for label in label_names * 3]
    )
    made = prepare_table(source=path, text_columns=("4",), label_column="2")
    assert made.class_counts == {"train": (3, 3)}
    index = SampleIndex.open(made.splits["train"])
    assert index.lengths is not None
    assert set(index.lengths.tolist()) == {4}  # [CLS] the cat [SEP]
    with pytest.raises(UserError, match=r"column 5: the first line has the columns 1 … 4"):
        prepare_table(source=path, text_columns=("5",), label_column="2", out=tmp_path / "new")


def test_numbers_that_a_header_has_are_names(tmp_path: Path, prepare_table: Prepare) -> None:
    path = tmp_path / "some.tsv"
    archives.write_lines(path, ["2\t1", "1\tthe cat", "0\ta dog"])
    made = prepare_table(source=path, text_columns=("1",), label_column="2")
    assert made.num_samples == {"train": 2}


@pytest.mark.parametrize("label_names", [("0", "1"), ("no", "yes")])
def test_header_is_no_row_of_counted_columns(
    tmp_path: Path, prepare_table: Prepare, label_names: tuple[str, str]
) -> None:
    path = tmp_path / "some.tsv"
    archives.write_lines(path, ["text\tlabel", *(f"a dog\t{name}" for name in label_names * 2)])
    with pytest.raises(UserError, match=r"line 1: its label 'label' is in no other line: if it is"):
        prepare_table(source=path, text_columns=("1",), label_column="2")


def test_blank_lines_at_the_end_are_left_out(tmp_path: Path) -> None:
    file = table(tmp_path / "some.tsv", rows("0", "1") + "\n\r\n")
    assert [row.label for row in file.rows()] == ["0", "1"]
    file = table(tmp_path / "some.tsv", rows("0", "1") + "\n" + "w\t0\n")
    with pytest.raises(UserError, match=r"line 4: 0 fields instead of 2"):
        list(file.rows())


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_long_fields(tmp_path: Path, ending: str) -> None:
    text, separator = "word " * 40_000, {"csv": ",", "tsv": "\t"}[ending]
    file = table(tmp_path / f"some.{ending}", f"text{separator}label\n{text}{separator}0\n")
    assert [row.texts for row in file.rows()] == [(text,)]


def test_quotes_around_tabs_are_refused_with_a_way_out(tmp_path: Path) -> None:
    file = table(tmp_path / "some.tsv", 'text\tlabel\n"a\tdog"\t0\n')
    with pytest.raises(UserError, match=r"line 2: 3 fields .* \(save one with quotes as .csv\)"):
        list(file.rows())


def test_what_a_table_lacks_is_named(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "some.tsv"
    archives.write_lines(path, ["sentence\tlabel", "the cat\t1", "a dog\t0"])
    table = functools.partial(
        prepare, "table", out=tmp_path / "out", source=path, tokenizer=str(tokenizer)
    )
    with pytest.raises(UserError, match=r"'table' needs text and label"):
        table(val_fraction=0)
    both = functools.partial(table, text_columns=("sentence",))
    with pytest.raises(UserError, match=r"0 columns are called 'class'; there is: sentence, label"):
        both(label_column="class", val_fraction=0)
    with pytest.raises(UserError, match=r"has no validation file beside it; give val-fraction"):
        both(label_column="label")
    with pytest.raises(UserError, match=r"text: 3 columns; name one, or two"):
        table(text_columns=("a", "b", "c"), label_column="label", val_fraction=0)
    with pytest.raises(UserError, match=r"tokenizer: '.*nowhere' cannot be loaded"):
        prepare(
            "table",
            out=tmp_path / "out",
            source=path,
            tokenizer=str(tmp_path / "nowhere"),
            text_columns=("sentence",),
            label_column="label",
            val_fraction=0,
        )


def test_greatest_length_leaves_room_for_the_text(tmp_path: Path, prepare_table: Prepare) -> None:
    path = tmp_path / "some.tsv"
    archives.write_lines(path, ["a\tb\tlabel", "the cat\ta dog\t0", "a mat\tthe cat\t1"])
    single = functools.partial(
        prepare_table, source=path, text_columns=("a",), label_column="label"
    )
    pair = functools.partial(single, text_columns=("a", "b"))
    with pytest.raises(UserError, match=r"max-length: 2, but 3 or more are needed: 2 special"):
        single(max_length=2)
    with pytest.raises(UserError, match=r"max-length: 4, but 5 or more are needed: 3 special"):
        pair(max_length=4)
    with pytest.raises(UserError, match=r"max-length: 9+ is not in 1 … 2147483647"):
        single(max_length=9999999999)
    assert not (tmp_path / "out").exists()
    for made in (single(max_length=3), pair(max_length=5, out=tmp_path / "pair")):
        lengths = SampleIndex.open(made.splits["train"]).lengths
        record = DatasetRecord.read(made.directory).tokenizer
        assert lengths is not None
        assert record is not None
        assert set(lengths.tolist()) == {record.max_length}


def test_length_that_the_model_does_not_take_is_said(tmp_path: Path) -> None:
    archives.write_tokenizer(tmp_path / "tokenizer", model_max_length=20)
    archives.write_lines(tmp_path / "some.tsv", ["text\tlabel", "the cat\t0", "a dog\t1"])
    prepare_with = functools.partial(
        prepare,
        "table",
        source=tmp_path / "some.tsv",
        tokenizer=str(tmp_path / "tokenizer"),
        text_columns=("text",),
        label_column="label",
        val_fraction=0,
    )
    assert prepare_with(out=tmp_path / "fits", max_length=20).notes == ()
    assert prepare_with(out=tmp_path / "long", max_length=21).notes == (
        "max-length 21 is more than the 20 tokens that the tokenizer's model takes",
    )
