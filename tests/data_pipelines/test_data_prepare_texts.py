"""Preparing text: GLUE's layouts, film reviews and any tables, tokenised as the library does."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from shards import array_samples
from transformers import AutoTokenizer

from data_pipelines import PreparedDataset, SampleIndex, UserError, prepare
from data_pipelines.durable_files import sha256_of_file
from data_pipelines.inspection import bench_split, check_dataset
from data_pipelines.preparation.record import DatasetRecord
from data_pipelines.preparation.text_classes import class_names, class_numbers
from data_pipelines.preparation.text_rows import TextFile

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open files

Text = tuple[tuple[str, ...], int]
Prepare = Callable[..., PreparedDataset]


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: str) -> Prepare:
    """Prepares from the folder `in` to the folder `out`."""

    def run(name: str, *, source: str = "in", out: str = "out", **options: Any) -> PreparedDataset:
        given = {"tokenizer": tokenizer, **options}
        return prepare(name, out=tmp_path / out, source=tmp_path / source, **given)

    return run


@pytest.fixture
def prepare_table(prepared: Prepare) -> Prepare:
    return functools.partial(prepared, "table", source="some.tsv", val_fraction=0)


def stored(made: PreparedDataset, split: str) -> Counter[tuple[str, int]]:
    """Tokens and label of every sample, as plain webdataset reads the shards."""
    samples = array_samples(made, split, "tokens.npy")
    assert {tokens.dtype for tokens, _ in samples} == {np.dtype(np.int32)}
    return Counter((str(tokens.tolist()), label) for tokens, label in samples)


def expected(texts: Sequence[Text], tokenizer: str, *, max_length: int = 128) -> Counter:
    library = AutoTokenizer.from_pretrained(tokenizer)
    found = Counter()
    for text, label in texts:
        encoded = library(*text, truncation=True, max_length=max_length)
        found[str([encoded["input_ids"], encoded["token_type_ids"]]), label] += 1
    return found


def singles(number: int, seed: int) -> list[Text]:
    return [((archives.sentence(seed + each),), each % 2) for each in range(number)]


def pairs(number: int, seed: int) -> list[Text]:
    seconds = [archives.sentence(seed + each + 500) for each in range(number)]
    return [
        ((*text, seconds[each]), label) for each, (text, label) in enumerate(singles(number, seed))
    ]


def write_cola(path: Path, texts: Sequence[Text]) -> None:
    lines = [f"gj04\t{label}\t{'' if label else '*'}\t{text}" for (text,), label in texts]
    archives.write_lines(path, lines)


def write_sst2(path: Path, texts: Sequence[Text], *, header: bool = True) -> None:
    lines = [f"{text}\t{label}" for (text,), label in texts]
    archives.write_lines(path, ["sentence\tlabel", *lines] if header else lines)


def write_mrpc(path: Path, texts: Sequence[Text]) -> None:
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    lines = [f"{label}\t{number}\t9\t{a}\t{b}" for number, ((a, b), label) in enumerate(texts)]
    archives.write_lines(path, ["\ufeff" + header, *lines])


def write_qqp(path: Path, texts: Sequence[Text]) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    lines = [f"{number}\t1\t2\t{a}\t{b}\t{label}" for number, ((a, b), label) in enumerate(texts)]
    archives.write_lines(path, [header, *lines])


@pytest.mark.parametrize(
    ("name", "write", "texts"),
    [
        ("cola", write_cola, singles),
        ("sst2", write_sst2, singles),
        ("sst2", functools.partial(write_sst2, header=False), singles),
        ("mrpc", write_mrpc, pairs),
        ("qqp", write_qqp, pairs),
    ],
)
def test_glue(
    tmp_path: Path,
    prepared: Prepare,
    tokenizer: str,
    name: str,
    write: Callable[[Path, Sequence[Text]], None],
    texts: Callable[[int, int], list[Text]],
) -> None:
    train, dev = texts(30, 0), texts(11, 100)
    write(tmp_path / "in/train.tsv", train)
    write(tmp_path / "in/dev.tsv", dev)
    made = prepared(name)
    assert stored(made, "train") == expected(train, tokenizer)
    assert stored(made, "val") == expected(dev, tokenizer)
    assert made.class_counts == {"train": (15, 15), "val": (6, 5)}
    record = DatasetRecord.read(made.directory)
    assert record.tokenizer is not None
    assert record.tokenizer.name == "tiny-bert"
    assert record.tokenizer.rows == ("input_ids", "token_type_ids")
    checksum = sha256_of_file(Path(tokenizer, "tokenizer.json"))
    assert record.tokenizer.files["tokenizer.json"] == checksum
    assert record.options == {"tokenizer": "tiny-bert", "max_length": 128}
    assert check_dataset(made.directory).is_whole
    index = SampleIndex.open(made.splits["train"])
    assert index.meta.tokens is not None
    assert index.meta.tokens.rows == ("input_ids", "token_type_ids")
    assert index.meta.tokens.pad_token_id == 0
    assert index.lengths is not None
    assert Counter(index.lengths.tolist()) == Counter(
        tokens.count(",") // 2 + 1 for tokens, _ in expected(train, tokenizer).elements()
    )


def test_cola_as_its_authors_publish_it(tmp_path: Path, prepared: Prepare, tokenizer: str) -> None:
    # Quotes in a TSV are text.
    quoted: list[Text] = [(('"the cat',), 0), (('a "dog" sat"',), 1)]
    parts = {
        "in_domain_train.tsv": singles(20, 0),
        "in_domain_dev.tsv": singles(5, 50),
        "out_of_domain_dev.tsv": quoted,
    }
    for name, texts in parts.items():
        write_cola(tmp_path / "in" / name, texts)
    made = prepared("cola")
    assert stored(made, "val") == expected(parts["in_domain_dev.tsv"] + quoted, tokenizer)
    assert "train: 20 rows, not the 8551 of GLUE" in made.notes


def test_long_texts_are_cut_and_counted_once(
    tmp_path: Path, prepared: Prepare, tokenizer: str
) -> None:
    texts: list[Text] = [((archives.sentence(each, num_words=each),), 0) for each in range(1, 21)]
    write_cola(tmp_path / "in/train.tsv", texts)
    write_cola(tmp_path / "in/dev.tsv", texts)
    seen: list[str] = []

    def interrupt(what: str, *, done: int, total: int | None, unit: str) -> None:
        seen.append(what)
        if what == "writing" and seen.count("writing") == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared("cola", max_length=12, progress=interrupt)
    assert "tokenising train.tsv" in seen
    before = len(seen)
    made = prepared("cola", max_length=12, progress=interrupt)
    # Tokens are kept when writing is interrupted.
    assert not [what for what in seen[before:] if what.startswith("tokenising")]
    assert stored(made, "train") == expected(texts, tokenizer, max_length=12)
    assert "train.tsv: 10 of 20 texts were cut to 12 tokens" in made.notes
    with pytest.raises(UserError, match=r"made with max_length 12 instead of 128"):
        prepared("cola")
    report = bench_split(made.splits["train"], num_samples=20, batch_size=4, loader_seconds=0.05)
    assert report.samples_per_second > 0
    with pytest.raises(UserError, match=r"transform: 'none' is without effect on text"):
        bench_split(made.splits["train"], transform="none")


def test_broken_rows_of_qqp_are_left_out_and_said(
    tmp_path: Path, prepared: Prepare, tokenizer: str
) -> None:
    texts = pairs(10, 0)
    for name in ("dev.tsv", "train.tsv"):
        write_qqp(tmp_path / "in" / name, texts)
    lines = (tmp_path / "in/train.tsv").read_text().splitlines()
    lines[4:4] = ["99\t1\t2\tthe cat sat on", "the mat\ta dog\t0"]
    archives.write_lines(tmp_path / "in/train.tsv", lines)
    made = prepared("qqp")
    assert stored(made, "train") == expected(texts, tokenizer)
    assert "train.tsv: left out 2 broken rows, in the lines 5, 6" in made.notes


@pytest.mark.parametrize(("ending", "labels"), [("csv", ("0", "1")), ("tsv", ("yes", "no"))])
def test_table(
    tmp_path: Path, prepared: Prepare, tokenizer: str, ending: str, labels: tuple[str, str]
) -> None:
    is_csv, texts = ending == "csv", pairs(40, 0)
    separator = "," if is_csv else "\t"
    rows = [
        [str(number), labels[label], f'"{a}, or"' if is_csv else a, b]
        for number, ((a, b), label) in enumerate(texts)
    ]
    lines = [separator.join(row) for row in [["number", "class", "left", "right"], *rows]]
    archives.write_lines(tmp_path / f"some.{ending}", lines)
    options = {"text_columns": ("right", "left"), "label_column": "class", "val_fraction": 0.2}
    made = prepared("table", source=f"some.{ending}", **options)
    names = sorted(labels)
    wanted = [
        ((b, f"{a}, or" if is_csv else a), names.index(labels[label])) for (a, b), label in texts
    ]
    assert made.num_samples == {"train": 32, "val": 8}
    assert stored(made, "train") + stored(made, "val") == expected(wanted, tokenizer)
    class_names = DatasetRecord.read(made.directory).class_names
    assert class_names == (None if is_csv else ("no", "yes"))


def test_table_with_split_files(tmp_path: Path, prepared: Prepare, tokenizer: str) -> None:
    columns = {"text_columns": ("sentence",), "label_column": "label"}
    for name, number in (("Train.TSV", 12), ("VALIDATION.tsv", 5), ("test.tsv", 3), ("._x.tsv", 1)):
        write_sst2(tmp_path / "in" / name, singles(number, 0))
    made = prepared("table", **columns)
    assert stored(made, "val") == expected(singles(5, 0), tokenizer)
    assert made.notes == (f"{tmp_path / 'in'}: left out: test.tsv",)
    write_sst2(tmp_path / "in/dev.tsv", singles(2, 0))
    with pytest.raises(UserError, match=r"VALIDATION.tsv and dev.tsv are both called after the sp"):
        prepared("table", out="new", **columns)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sentence\tlabel\nthe cat\t1\na dog", r"line 3: 1 fields instead of 2: cut short"),
        (b"sentence\tlabel\nthe cat\t1", r"train.tsv: cut short: ends within a line, and train"),
        (b"sentence\tlabel\nthe\tcat\t1\n", r"line 2: 3 fields instead of 2"),
        (b"sentence\tlabel\nthe cat\t2\n", r"line 2: label '2' is none of 0, 1"),
        (
            b"sentence\tlabel\n\xff\t1\n",
            r"train.tsv: line 2: no UTF-8 text; it may be Windows-1252, which reads 'ÿ\\t1'",
        ),
        (b"sentence\tlabel\n", r"train.tsv: holds no rows"),
        (b"text\tlabel\tmore\nthe cat\t1\t2\n", r"begins with the columns sentence, label"),
    ],
)
def test_damaged_texts_are_named(
    tmp_path: Path, prepared: Prepare, content: bytes, message: str
) -> None:
    write_sst2(tmp_path / "in/dev.tsv", singles(2, 0))
    (tmp_path / "in/train.tsv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepared("sst2")
    assert not (tmp_path / "out").exists()


# Film reviews ----------------------------------------------------------------------------------

REVIEWS = [
    "1\t2.26666666667\tA gripping film, beautifully shot .",
    "2\t-0.6\tEffective but too tepid biopic",
    "3\t0.0\tNeither here nor there .",
    '4\t3.5\tA thoughtful, "quiet" triumph — for once .',
    "5\t-1.25\tDull .",
]


def test_film_reviews_whole_and_as_the_bare_file(tmp_path: Path, prepared: Prepare) -> None:
    whole, bare = "vaderSentiment-3.3.2.tar.gz", "movieReviewSnippets_GroundTruth.txt"
    archives.write_film_reviews(tmp_path / whole, REVIEWS * 5)
    (tmp_path / bare).write_bytes("\r\n".join(REVIEWS * 5).encode())
    both = [prepared("film_reviews", source=name, out=f"{name}-out") for name in (whole, bare)]
    made = both[0]
    indexes = [SampleIndex.open(each.splits["train"]) for each in both]
    assert indexes[0].fingerprint == indexes[1].fingerprint
    assert made.num_samples == {"train": 16, "val": 4}
    # The sign of the rating is the class.
    assert np.sum([*made.class_counts.values()], axis=0).tolist() == [10, 10]
    assert any("left out 5 sentences rated 0" in note for note in made.notes)
    assert any("25 sentences, the published set has 10605" in note for note in made.notes)


def test_other_files_are_no_film_reviews(tmp_path: Path, prepared: Prepare) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    archives.write_film_reviews(folder / "cut.tar.gz", REVIEWS)
    (folder / "cut.tar.gz").write_bytes((folder / "cut.tar.gz").read_bytes()[:300])
    other = archives.tar_bytes({"something/else.txt": b"x"}, mode="w:gz")
    (folder / "other.tar.gz").write_bytes(other)
    (folder / "lines.txt").write_text("1\t2.5\ta text\n2\tgood\tanother\n")
    (folder / "latin.txt").write_bytes("1\t2.5\ta\n2\t2.5\tcafé\n".encode("latin-1"))
    for name, words in {
        "cut.tar.gz": "damaged or cut short",
        "other.tar.gz": "holds no hutto_ICWSM_2014.tar.gz",
        "lines.txt": "line 2 is not",
        "latin.txt": "line 2: no UTF-8 text; it may be Windows-1252, which reads .*café'",
        "": "is a folder",
    }.items():
        with pytest.raises(UserError, match=words):
            prepared("film_reviews", source=f"in/{name}")
        assert not (tmp_path / "out").exists()


# Tables that are half-written, have odd labels, or are not what a spreadsheet would write. -------


def table(path: Path, content: str) -> TextFile:
    path.write_text(content, encoding="utf-8", newline="")
    return TextFile(path, text_columns=("text",), label_column="label")


def rows(*labels: str) -> str:
    return "text\tlabel\n" + "".join(f"w{label}\t{label}\n" for label in labels)


def test_labels_that_would_shift_the_classes_are_refused(tmp_path: Path) -> None:
    for content, message in (
        # Cut within the label, with and without the rest of it.
        (rows("0", "1", "0") + "w50\t", r"line 5: the label is empty: cut short"),
        (rows("0", "1", "10", "10") + "w\t1", r"ends within a line, so its last row may be cut"),
        (rows("good", "bad", "bad", "good") + "w\tgo", r"ends within a line"),
        ("label\ttext\n0\ta dog\n1\ta ca", r"ends within a line.* add a line break at its end"),
        (rows("0", "1", "0") + "w\t  \n", r"line 5: the label is empty: cut short, or a row with"),
        # A few words among numbers, or numbers among words: named with the line of the rarer.
        (rows("0", "1", "0", "x", "1"), r"line 5: the label is 'x', but '0' in line 2 of"),
        (rows("a", "b", "7", "b"), r"line 4: the label is '7', but 'a' in line 2 of"),
        (rows("100000"), r"line 2: 100000 is no class number: .* below 100000 \(seen: 100000\)"),
        # GLUE's sign for none, what pandas makes of a missing label, and scores.
        (rows("0", "1", "-1", "1"), r"line 4: -1 is no class number: .* \(seen: -1, 0, 1\)"),
        (rows("-1", "1"), r"line 2: -1 is no class number"),
        (rows("1.0", "nan", "0.0"), r"line 3: nan is no class number: .*seen: 0.0, 1.0, nan"),
        (rows("a", "b", "NaN", "b"), r"line 4: the label is 'NaN', but 'a' in line 2 of"),
        (rows("a", "b", "-1", "b"), r"line 4: the label is '-1', but 'a' in line 2 of"),
        (rows("0", "1e9", "0"), r"line 3: 1e9 is no class number"),
        (rows(*["0.1", "0.25", "4.5"]), r"3 different numbers with fractions in 3 rows \(seen: 0"),
        (rows(*[f"{n / 8}" for n in range(21)] * 9), r"21 different numbers .* scores and no cl"),
        *(
            (rows(*labels), rf"column 'label': every row has a label .* \({labels[0]}, .*48 in all")
            for labels in ([f"{n}" for n in range(48)], [f"text {n}" for n in range(48)])
        ),
    ):
        with pytest.raises(UserError, match=rf"some.tsv: {message}"):
            class_numbers([table(tmp_path / "some.tsv", content)])


def test_labels_that_can_be_believed(tmp_path: Path) -> None:
    for content, classes in (
        (rows("0 ", " 1", "0"), {"0": 0, "1": 1}),
        (rows("b", "a ", "a"), {"a": 0, "b": 1}),
        (rows(*(f"{n}.0" for n in range(12))), {f"{n}.0": n for n in range(12)}),
        (rows("2.", "+1", "1.0", "0"), {"0": 0, "+1": 1, "1.0": 1, "2.": 2}),
        (rows(*["10.5", "9.5", "9.50"] * 2), {"9.5": 0, "9.50": 0, "10.5": 1}),
        # The last label cannot be a part of another one, or is no column that is read.
        (rows("0", "1") + "w\t1", {"0": 0, "1": 1}),
        (rows("0", "1") + "w\t1\r", {"0": 0, "1": 1}),
        ("label\ttext\tid\n0\ta dog\t1\n1\ta cat\t12", {"0": 0, "1": 1}),
    ):
        found = class_numbers([table(tmp_path / "some.tsv", content)])
        assert found == classes
        names = class_names(found)
        are_digits = all(label.isdigit() for label in classes)
        assert (names is None) == are_digits
        assert are_digits or {name: number for number, name in enumerate(names)}.items() <= (
            classes.items()
        )


@pytest.mark.parametrize(("ending", "label_names"), [("csv", ("0", "1")), ("tsv", ("no", "yes"))])
def test_columns_of_a_file_without_header_are_counted(
    tmp_path: Path, prepare_table: Prepare, ending: str, label_names: tuple[str, str]
) -> None:
    source, separator = f"some.{ending}", {"csv": ",", "tsv": "\t"}[ending]
    lines = [separator.join(["id", f"{label} ", "a", "the cat"]) for label in label_names * 3]
    archives.write_lines(tmp_path / source, lines)
    made = prepare_table(source=source, text_columns=("4",), label_column="2")
    assert made.class_counts == {"train": (3, 3)}
    index = SampleIndex.open(made.splits["train"])
    assert index.lengths is not None
    assert set(index.lengths.tolist()) == {4}  # [CLS] the cat [SEP]
    with pytest.raises(UserError, match=r"column 5: the first line has the columns 1 … 4"):
        prepare_table(source=source, text_columns=("5",), label_column="2", out="new")


def test_headers_of_numbers_and_headers_taken_for_rows(
    tmp_path: Path, prepare_table: Prepare
) -> None:
    path = tmp_path / "some.tsv"
    archives.write_lines(path, ["2\t1", "1\tthe cat", "0\ta dog"])
    made = prepare_table(text_columns=("1",), label_column="2")
    assert made.num_samples == {"train": 2}
    for label_names in (("0", "1"), ("no", "yes")):
        rows_of_names = [f"a dog\t{name}" for name in label_names * 2]
        archives.write_lines(path, ["text\tlabel", *rows_of_names])
        with pytest.raises(
            UserError, match=r"line 1: its label 'label' is in no other line: if it"
        ):
            prepare_table(text_columns=("1",), label_column="2", out="new")


def test_blank_lines_long_fields_and_quotes(tmp_path: Path) -> None:
    file = table(tmp_path / "some.tsv", rows("0", "1") + "\n\r\n")
    assert [row.label for row in file.rows()] == ["0", "1"]
    file = table(tmp_path / "some.tsv", rows("0", "1") + "\n" + "w\t0\n")
    with pytest.raises(UserError, match=r"line 4: 0 fields instead of 2"):
        list(file.rows())
    text = "word " * 40_000
    for ending, separator in (("csv", ","), ("tsv", "\t")):
        file = table(tmp_path / f"some.{ending}", f"text{separator}label\n{text}{separator}0\n")
        assert [row.texts for row in file.rows()] == [(text,)]
    file = table(tmp_path / "some.tsv", 'text\tlabel\n"a\tdog"\t0\n')
    with pytest.raises(UserError, match=r"line 2: 3 fields .* \(save one with quotes as .csv\)"):
        list(file.rows())


def test_a_fault_of_a_csv_names_its_line(tmp_path: Path) -> None:
    whole = "".join(f"text {n},{n % 2}\n" for n in range(3000)).encode()
    path = tmp_path / "some.csv"
    file = TextFile(path, text_columns=("text",), label_column="label")
    for tail, message in (
        (
            "café,1\n".encode("latin-1"),
            r"line 3002: no UTF-8 text; it may be Windows-1252, which reads 'café,",
        ),
        (
            b'"never closed,1\n' + whole,
            r"line 3002: a quote that is opened here .* before line 6002",
        ),
        (b'"never closed,1\n' + whole + b'a "b",0\n', r"line 3002: a quote .* before line 6003"),
        # Of a row whose first field is quoted, whole, and has two lines with quotes.
        (b'"two\nlin""es","never,1\n' + whole, r"line 3003: a quote that is opened here"),
        (b'"a" b,1\n', r"line 3002: cannot be read: ',' expected after '\"'"),
        (b"a,b,1\n", r"line 3002: 3 fields instead of 2"),
        (b'"a\nb",c,1\n', r"line 3002: 3 fields instead of 2"),
    ):
        path.write_bytes(b"text,label\n" + whole + tail)
        with pytest.raises(UserError, match=rf"some.csv: {message}"):
            list(file.rows())
    path.write_text("text,label\na,1\n", encoding="utf-16")
    for read in (file.first_row, lambda: list(file.rows())):
        with pytest.raises(UserError, match=r"some.csv: line 1: no UTF-8 text; it may be UTF-16:"):
            read()


def test_what_a_table_lacks_is_named(tmp_path: Path, prepared: Prepare) -> None:
    archives.write_lines(tmp_path / "some.tsv", ["sentence\tlabel", "the cat\t1", "a dog\t0"])
    whole = {"text_columns": ("sentence",), "label_column": "label", "val_fraction": 0}
    for changes, message in (
        ({"text_columns": None, "label_column": None}, r"'table' needs text and label"),
        ({"label_column": "class"}, r"0 columns are called 'class'; there is: sentence, label"),
        ({"val_fraction": None}, r"has no validation file beside it; give val-fraction"),
        ({"text_columns": ("a", "b", "c")}, r"text: 3 columns; name one, or two"),
        ({"tokenizer": str(tmp_path / "nowhere")}, r"tokenizer: '.*nowhere' cannot be loaded"),
        ({"max_length": 2}, r"max-length: 2, but 3 or more are needed: 2 special"),
        ({"max_length": 9999999999}, r"max-length: 9+ is not in 1 … 2147483647"),
    ):
        with pytest.raises(UserError, match=message):
            prepared("table", source="some.tsv", **(whole | changes))
    assert not (tmp_path / "out").exists()


def test_greatest_length_leaves_room_for_the_text_and_fits_the_model(
    tmp_path: Path, prepare_table: Prepare
) -> None:
    lines = ["a\tb\tlabel", "the cat\ta dog\t0", "a mat\tthe cat\t1"]
    archives.write_lines(tmp_path / "some.tsv", lines)
    archives.write_tokenizer(tmp_path / "small", model_max_length=20)
    single = functools.partial(prepare_table, text_columns=("a",), label_column="label")
    pair = functools.partial(single, text_columns=("a", "b"))
    with pytest.raises(UserError, match=r"max-length: 4, but 5 or more are needed: 3 special"):
        pair(max_length=4)
    for made in (single(max_length=3), pair(max_length=5, out="pair")):
        lengths = SampleIndex.open(made.splits["train"]).lengths
        record = DatasetRecord.read(made.directory).tokenizer
        assert lengths is not None
        assert record is not None
        assert set(lengths.tolist()) == {record.max_length}
    small = functools.partial(single, tokenizer=str(tmp_path / "small"))
    assert small(out="fits", max_length=20).notes == ()
    assert small(out="long", max_length=21).notes == (
        "max-length 21 is more than the 20 tokens that the tokenizer's model takes",
    )
