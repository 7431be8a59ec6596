"""docs/data.md, to the letter: its commands and its code run, in the order they are written."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import archives
import numpy as np
import pytest
import yaml
from file_server import serving
from shards import png, write_shards

from data_pipelines import (
    DATASETS,
    ORDERS,
    TRANSFORMS,
    GlobalOrder,
    PreparedDataset,
    SampleIndex,
    SampleOrder,
    sample_order,
)
from data_pipelines.inspection import check_dataset
from data_pipelines.order import LaneOrder, WindowOrder
from data_pipelines.transforms import STATISTICS, transform_preset
from launch.cli import main
from msam_scale.config import load_config
from msam_scale.config.sections.base import Section
from msam_scale.config.sections.experiment import DataSection
from msam_scale.config.sections.optimization import TrainingSection

DOCUMENT = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
REMOTE = "https://data.example.org"

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset's open files


class Block(NamedTuple):
    """A fenced block and what is written right below it as its output."""

    language: str
    text: str
    output: str | None


def blocks() -> Iterator[Block]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    for (language, text), (next_language, next_text) in zip(
        found, [*found[1:], ("", "")], strict=True
    ):
        is_followed = f"{text}```\n```{next_language}\n" in DOCUMENT
        yield Block(language, text, next_text if is_followed else None)


def table_cells(heading: str) -> list[list[str]]:
    """The rows of the table whose first column is called `heading`."""
    _, _, table = DOCUMENT.partition(f"\n| {heading} |")
    lines = table.partition("\n\n")[0].splitlines()[2:]
    assert lines, heading
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def prepare_commands() -> list[str]:
    return [cells[1].strip("`") for cells in table_cells("data set")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands start from: small files of the published layouts."""
    root = tmp_path_factory.mktemp("docs")
    downloads = root / "downloads"
    downloads.mkdir()
    archives.write_mnist(downloads / "mnist")
    archives.write_mnist(downloads / "fashion", gz=False)
    archives.write_cifar(downloads / "cifar-10-python.tar.gz", archives.cifar10_files())
    archives.write_cifar(downloads / "cifar-100-python.tar.gz", archives.cifar100_files())
    archives.write_imagenet(downloads / "imagenet")
    archives.write_class_folders(
        root / "photos", class_names=("cat", "dog"), per_class=50, seed=0, kind="JPEG"
    )
    # A folder of the tokenizer's name is found before the hub is asked.
    archives.write_tokenizer(root / "sentence-transformers" / "all-MiniLM-L6-v2")
    write_texts(root)
    rng = np.random.default_rng(0)
    (root / "own").mkdir()
    own = [{"png": png(rng.integers(0, 256, (9, 9, 3), np.uint8)), "cls": b"1"} for _ in range(30)]
    for path in write_shards(root / "own" / "train", own):
        path.rename(path.with_name(path.name.replace("part", "own")))
    return root


def write_texts(root: Path) -> None:
    headers = {
        "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "SST-2": "sentence\tlabel",
        "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    }
    first, second = archives.sentence(1), archives.sentence(2)
    rows = {
        "CoLA": f"gj04\t1\t\t{first}",
        "MRPC": f"1\t1\t2\t{first}\t{second}",
        "SST-2": f"{first}\t0",
        "QQP": f"1\t2\t3\t{first}\t{second}\t0",
    }
    for task, row in rows.items():
        header = [headers[task]] if task in headers else []
        for name in ("train.tsv", "dev.tsv"):
            archives.write_lines(root / "downloads" / task / name, [*header, row, row])
    reviews = [f"{archives.sentence(number)}\t{number % 2}" for number in range(20)]
    archives.write_lines(root / "reviews.tsv", ["sentence\tlabel", *reviews])
    archives.write_film_reviews(
        root / "downloads" / "vaderSentiment-3.3.2.tar.gz",
        [f"{number}\t{(-1) ** number}\t{archives.sentence(number)}" for number in range(20)],
    )


def test_every_command_and_all_code_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for command in prepare_commands():
        run(command, capsys=capsys)
    for each in Path("data").iterdir():
        assert check_dataset(each).is_whole, each
    names: dict[str, Any] = {"__name__": "docs"}
    printed = ""
    with serving(folder / "data") as server:
        for block in blocks():
            if block.language == "bash":
                for command in block.text.splitlines():
                    printed = run(command, capsys=capsys)
            elif block.language == "python":
                exec(compile(block.text.replace(REMOTE, server.url), "docs/data.md", "exec"), names)
                printed = capsys.readouterr().out
            if block.output is not None:
                assert without_figures(printed) == without_figures(block.output)
            if "steps were left" in block.text:
                assert printed == "70 steps were left\n"
                assert names["loader"].steps_per_epoch == 22
                *_, last_batch = names["make_loader"]()
            if "are right" in block.text:
                assert int(printed.split()[0]) > 180
            if "batches are left" in block.text:
                assert printed == "70 batches are left\n"
            if "ScheduledShards" in block.text:
                # It goes on after 30 of the 100 steps, and so ends with the same batch.
                for ours, theirs in zip(
                    last_batch, (names["images"], names["labels"]), strict=True
                ):
                    assert np.array_equal(ours, theirs)
            if REMOTE in block.text:
                assert printed == "1408 samples, 0 bad ones\n"
                assert server.num_requests("digits/train/train-000000.tar") > 0
    assert names["steps_done"] == 30
    assert SampleIndex.open("own/train").num_samples == 30


def run(command: str, *, capsys: pytest.CaptureFixture[str]) -> str:
    program, *arguments = shlex.split(command)
    assert program == "msam-scale", command
    # What it measures does not matter here, so it need not take its time.
    code = main([*arguments, "--seconds", "0.1"] if "bench" in arguments else arguments)
    out, err = capsys.readouterr()
    assert code == 0, f"{command}\n{out}\n{err}"
    return out


def without_figures(text: str) -> str:
    """What is left of an output whose figures are measured; whole where they are not."""
    if "samples/s" not in text:
        return text
    return re.sub(r" +", " ", re.sub(r"[\d.]+|(?<= )-(?=\s)", "#", text))


def test_tables_name_all_there_is() -> None:
    prepared = [shlex.split(command)[3] for command in prepare_commands()]
    assert sorted(prepared) == sorted(DATASETS)
    training = {cells[0].split("`")[1]: cells[1:] for cells in table_cells("`data.transform`")}
    evaluation = {cells[0].strip("`"): cells[1:] for cells in table_cells("evaluation")}
    assert sorted([*training, *evaluation]) == sorted(TRANSFORMS)
    for name, cells in training.items():
        statistics = STATISTICS[re.sub(r"[`:].*", "", cells[2].lstrip("`"))]
        assert (transform_preset(name).mean, transform_preset(name).std) == statistics
        if cells[1] != "as stored":
            expected = transform_preset(cells[1].strip("`"))
            assert transform_preset(name).prepare == expected.prepare
    for name, cells in evaluation.items():
        assert transform_preset(name).mean == STATISTICS[cells[1].strip("`")].mean
    for transform in re.findall(r"`(\w+:(?:size|statistics|evaluation)=[^`]+)`", DOCUMENT):
        transform_preset(transform)


def test_orders_touch_so_many_shards() -> None:
    shard_sizes = np.full(1281, 1000)
    orders: dict[str, SampleOrder] = {
        "global": GlobalOrder(seed=0, num_samples=1281000),
        "window": WindowOrder(shard_sizes, seed=0, shards_per_window=64),
        "lanes": LaneOrder(
            shard_sizes, seed=0, batch_size=4096, num_lanes=256, shards_per_window=2
        ),
    }

    def num_shards(order: SampleOrder, *, steps: range, samples: int) -> int:
        starts = [step * 4096 for step in steps]
        ids = [order.sample_ids(0, start=start, stop=start + samples) for start in starts]
        return len(np.unique(np.concatenate(ids) // 1000))

    for name, of_step, of_rank, of_rank_later in table_cells("order"):
        order = orders[name.strip("`")]
        counted = num_shards(order, steps=range(10, 11), samples=4096)
        assert counted == pytest.approx(int(re.findall(r"\d+", of_step)[0]), rel=0.02), name
        assert num_shards(order, steps=range(10, 11), samples=512) == pytest.approx(
            int(of_rank), rel=0.05
        )
        assert num_shards(order, steps=range(50), samples=512) == int(of_rank_later), name


def test_orders_have_these_names_and_defaults(digits: PreparedDataset) -> None:
    index = SampleIndex.open(digits.splits["train"])
    listed = [cells[0].split("`")[1] for cells in table_cells("`data.order`")]
    assert [name.partition(":")[0] for name in listed] == list(ORDERS)
    for name in listed:
        default = sample_order(name.partition(":")[0], index=index, seed=0, batch_size=512)
        assert default.identity == name


def test_config_is_one_and_its_keys_are_there() -> None:
    (config,) = (yaml.safe_load(block.text) for block in blocks() if block.language == "yaml")
    load_config({"batch": {"size": 64}, "objective": {"micro_batches": 8}, **config})
    named = re.findall(r"`(data|training)\.(\w+)[`:]", DOCUMENT)
    assert {"order", "transform", "cache_dir", "on_error", "resident"} <= {key for _, key in named}
    listed = re.search(r"# ([\w, ]+): below", DOCUMENT)
    assert listed is not None
    named += [("data", key) for key in listed[1].split(", ")]
    sections: dict[str, type[Section]] = {"data": DataSection, "training": TrainingSection}
    for section, key in named:
        assert key in sections[section].model_fields, key


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", DOCUMENT):
        assert (Path(__file__).parents[2] / "docs" / target).exists(), target
