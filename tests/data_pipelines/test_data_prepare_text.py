"""Preparing text: GLUE's published layouts and any tables, tokenised as the library does."""

import gc
import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import archives
import numpy as np
import pytest
import webdataset
from transformers import AutoTokenizer

from data_pipelines import PreparedDataset, SampleIndex, UserError, prepare
from data_pipelines.durable_files import sha256_of_file
from data_pipelines.inspection import bench_split, check_dataset
from data_pipelines.preparation.record import DatasetRecord

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open files

Text = tuple[tuple[str, ...], int]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny-bert"
    archives.write_tokenizer(folder)
    return folder


def stored(made: PreparedDataset, split: str) -> Counter[tuple[str, int]]:
    """Tokens and label of every sample, as plain webdataset reads the shards."""
    shards = sorted(map(str, made.splits[split].glob("*.tar")))
    found = Counter()
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        tokens = np.load(io.BytesIO(sample["tokens.npy"]), allow_pickle=False)
        assert tokens.dtype == np.int32
        found[str(tokens.tolist()), int(sample["cls"])] += 1
    gc.collect()
    return found


def expected(texts: Sequence[Text], tokenizer: Path, *, max_length: int = 128) -> Counter:
    library = AutoTokenizer.from_pretrained(tokenizer)
    found = Counter()
    for text, label in texts:
        encoded = library(*text, truncation=True, max_length=max_length)
        rows = [encoded["input_ids"], encoded["token_type_ids"]]
        found[str(rows), label] += 1
    return found


def singles(number: int, seed: int) -> list[Text]:
    return [((archives.sentence(seed + each),), each % 2) for each in range(number)]


def pairs(number: int, seed: int) -> list[Text]:
    return [
        ((archives.sentence(seed + each), archives.sentence(seed + each + 500)), each % 2)
        for each in range(number)
    ]


def write_cola(path: Path, texts: Sequence[Text]) -> None:
    archives.write_lines(
        path, [f"gj04\t{label}\t{'' if label else '*'}\t{text}" for (text,), label in texts]
    )


def write_sst2(path: Path, texts: Sequence[Text]) -> None:
    lines = [f"{text}\t{label}" for (text,), label in texts]
    archives.write_lines(path, ["sentence\tlabel", *lines])


def write_sst2_without_header(path: Path, texts: Sequence[Text]) -> None:
    archives.write_lines(path, [f"{text}\t{label}" for (text,), label in texts])


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
        ("sst2", write_sst2_without_header, singles),
        ("mrpc", write_mrpc, pairs),
        ("qqp", write_qqp, pairs),
    ],
)
def test_glue(
    tmp_path: Path,
    tokenizer: Path,
    name: str,
    write: Callable[[Path, Sequence[Text]], None],
    texts: Callable[[int, int], list[Text]],
) -> None:
    train, dev = texts(30, 0), texts(11, 100)
    write(tmp_path / "in/train.tsv", train)
    write(tmp_path / "in/dev.tsv", dev)
    made = prepare(
        name,
        out=tmp_path / "out",
        source=tmp_path / "in",
        tokenizer=str(tokenizer),
        num_workers=2,
    )
    assert stored(made, "train") == expected(train, tokenizer)
    assert stored(made, "val") == expected(dev, tokenizer)
    assert made.class_counts == {"train": (15, 15), "val": (6, 5)}
    record = DatasetRecord.read(made.directory)
    assert record.tokenizer is not None
    assert record.tokenizer.name == "tiny-bert"
    assert record.tokenizer.rows == ("input_ids", "token_type_ids")
    assert record.tokenizer.files["tokenizer.json"] == sha256_of_file(tokenizer / "tokenizer.json")
    assert record.options == {"tokenizer": "tiny-bert", "max_length": 128}
    assert check_dataset(made.directory).is_whole
    index = SampleIndex.open(made.splits["train"])
    assert index.meta.tokens is not None
    assert (index.meta.tokens.rows, index.meta.tokens.pad_token_id) == (
        ("input_ids", "token_type_ids"),
        0,
    )
    assert index.lengths is not None
    assert Counter(index.lengths.tolist()) == Counter(
        tokens.count(",") // 2 + 1 for tokens, _ in expected(train, tokenizer).elements()
    )


def test_cola_as_its_authors_publish_it(tmp_path: Path, tokenizer: Path) -> None:
    parts = {
        "in_domain_train.tsv": singles(20, 0),
        "in_domain_dev.tsv": singles(5, 50),
        "out_of_domain_dev.tsv": singles(4, 70),
    }
    for name, texts in parts.items():
        write_cola(tmp_path / "in" / name, texts)
    made = prepare("cola", out=tmp_path / "out", source=tmp_path / "in", tokenizer=str(tokenizer))
    dev = parts["in_domain_dev.tsv"] + parts["out_of_domain_dev.tsv"]
    assert stored(made, "val") == expected(dev, tokenizer)
    assert "train: 20 rows, not the 8551 of GLUE" in made.notes


def test_quotes_in_a_tsv_are_text(tmp_path: Path, tokenizer: Path) -> None:
    texts: list[Text] = [(('"the cat',), 0), (('a "dog" sat"',), 1)]
    for name in ("train.tsv", "dev.tsv"):
        write_sst2(tmp_path / "in" / name, texts)
    made = prepare("sst2", out=tmp_path / "out", source=tmp_path / "in", tokenizer=str(tokenizer))
    assert stored(made, "train") == expected(texts, tokenizer)


def test_long_texts_are_cut_and_counted(tmp_path: Path, tokenizer: Path) -> None:
    texts: list[Text] = [((archives.sentence(each, num_words=each),), 0) for each in range(1, 21)]
    write_cola(tmp_path / "in/train.tsv", texts)
    write_cola(tmp_path / "in/dev.tsv", texts)
    arguments = {"source": tmp_path / "in", "tokenizer": str(tokenizer)}
    made = prepare("cola", out=tmp_path / "out", max_length=12, **arguments)  # type: ignore[arg-type]
    assert stored(made, "train") == expected(texts, tokenizer, max_length=12)
    assert "train.tsv: 10 of 20 texts were cut to 12 tokens" in made.notes
    with pytest.raises(UserError, match=r"made with max_length 12 instead of 128"):
        prepare("cola", out=tmp_path / "out", **arguments)  # type: ignore[arg-type]


def test_broken_rows_of_qqp_are_left_out_and_said(tmp_path: Path, tokenizer: Path) -> None:
    texts = pairs(10, 0)
    write_qqp(tmp_path / "in/dev.tsv", texts)
    write_qqp(tmp_path / "in/train.tsv", texts)
    path = tmp_path / "in/train.tsv"
    lines = path.read_text().splitlines()
    lines[4:4] = ["99\t1\t2\tthe cat sat on", "the mat\ta dog\t0"]
    archives.write_lines(path, lines)
    made = prepare("qqp", out=tmp_path / "out", source=tmp_path / "in", tokenizer=str(tokenizer))
    assert stored(made, "train") == expected(texts, tokenizer)
    assert "train.tsv: left out 2 broken rows, which end in the lines 5, 6" in made.notes


@pytest.mark.parametrize("labels", [("0", "1"), ("yes", "no")])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_table(tmp_path: Path, tokenizer: Path, ending: str, labels: tuple[str, str]) -> None:
    separator = {"csv": ",", "tsv": "\t"}[ending]
    texts = pairs(40, 0)
    lines = [
        separator.join([str(number), labels[label], f'"{a}, or"' if ending == "csv" else a, b])
        for number, ((a, b), label) in enumerate(texts)
    ]
    path = tmp_path / f"some.{ending}"
    archives.write_lines(path, [separator.join(["number", "class", "left", "right"]), *lines])
    made = prepare(
        "table",
        out=tmp_path / "out",
        source=path,
        tokenizer=str(tokenizer),
        text_columns=("right", "left"),
        label_column="class",
        val_fraction=0.2,
    )
    names = sorted(labels)
    wanted = [
        ((b, f"{a}, or" if ending == "csv" else a), names.index(labels[label]))
        for (a, b), label in texts
    ]
    assert made.num_samples == {"train": 32, "val": 8}
    assert stored(made, "train") + stored(made, "val") == expected(wanted, tokenizer)
    class_names = DatasetRecord.read(made.directory).class_names
    assert class_names == (None if labels == ("0", "1") else ("no", "yes"))


def test_table_with_split_files(tmp_path: Path, tokenizer: Path) -> None:
    for name, number in (("train.tsv", 12), ("dev.tsv", 5)):
        write_sst2(tmp_path / "in" / name, singles(number, 0))
    made = prepare(
        "table",
        out=tmp_path / "out",
        source=tmp_path / "in",
        tokenizer=str(tokenizer),
        text_columns=("sentence",),
        label_column="label",
    )
    assert stored(made, "val") == expected(singles(5, 0), tokenizer)


GOOD = "sentence\tlabel\nthe cat\t1\na dog\t0\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sentence\tlabel\nthe cat\t1\na dog", r"line 3: 1 fields instead of 2: cut short"),
        (b"sentence\tlabel\nthe cat\t1", r"train.tsv: cut short: ends within a line, and train"),
        (b"sentence\tlabel\nthe cat\n", r"line 2: 1 fields instead of 2: cut short, or not a TSV"),
        (b"sentence\tlabel\nthe\tcat\t1\n", r"line 2: 3 fields instead of 2"),
        (b"sentence\tlabel\nthe cat\t2\n", r"line 2: label '2' is none of 0, 1"),
        (b"sentence\tlabel\n\xff\t1\n", r"train.tsv: cannot be read: 'utf-8' codec"),
        (b"sentence\tlabel\n", r"train.tsv: holds no rows"),
        (b"text\tlabel\tmore\nthe cat\t1\t2\n", r"begins with the columns sentence, label"),
    ],
)
def test_damaged_texts_are_named(
    tmp_path: Path, tokenizer: Path, content: bytes, message: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/train.tsv").write_bytes(content)
    (tmp_path / "in/dev.tsv").write_text(GOOD)
    with pytest.raises(UserError, match=message):
        prepare("sst2", out=tmp_path / "out", source=tmp_path / "in", tokenizer=str(tokenizer))
    assert not (tmp_path / "out").exists()


def test_tokens_are_kept_when_writing_is_interrupted(tmp_path: Path, tokenizer: Path) -> None:
    write_cola(tmp_path / "in/train.tsv", singles(20, 0))
    write_cola(tmp_path / "in/dev.tsv", singles(20, 0))
    seen: list[str] = []

    def interrupt(what: str, *, done: int, total: int | None, unit: str) -> None:
        seen.append(what)
        if what == "writing" and seen.count("writing") == 1:
            raise KeyboardInterrupt

    arguments = {"source": tmp_path / "in", "tokenizer": str(tokenizer), "progress": interrupt}
    with pytest.raises(KeyboardInterrupt):
        prepare("cola", out=tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert "tokenising train.tsv" in seen
    before = len(seen)
    prepare("cola", out=tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not [what for what in seen[before:] if what.startswith("tokenising")]


def test_bench_of_text(tmp_path: Path, tokenizer: Path) -> None:
    for name in ("train.tsv", "dev.tsv"):
        write_cola(tmp_path / "in" / name, singles(40, 0))
    made = prepare("cola", out=tmp_path / "out", source=tmp_path / "in", tokenizer=str(tokenizer))
    report = bench_split(made.splits["train"], num_samples=40, batch_size=4, loader_seconds=0.1)
    assert report.samples_per_second > 0
    with pytest.raises(UserError, match=r"transform: 'none' is without effect on text"):
        bench_split(made.splits["train"], transform="none")
