"""`data check` and `data bench`: what is wrong is found and named; the commands around them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import archives
import pytest

from data_pipelines import PreparedDataset, SampleIndex, UserError
from data_pipelines.inspection import bench_split, check_dataset
from data_pipelines.preparation import DATASETS
from launch.cli import main
from launch.commands import data as data_command


@pytest.fixture
def copy(digits: PreparedDataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits.directory, tmp_path / "digits"))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_whole_data_set(copy: Path, num_workers: int) -> None:
    report = check_dataset(copy, num_workers=num_workers)
    assert report.is_whole
    assert report.num_samples == {"train": 1437, "val": 360}
    assert report.num_bytes == sum(path.stat().st_size for path in copy.rglob("*.tar"))
    assert check_dataset(copy / "val").num_samples == {"val": 360}


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def flip_payload(root: Path) -> None:
    index = SampleIndex.open(root / "train")
    flip(index.shard_path(1), int(index.samples["npy.offset"][600]) + 90)


def flip_header(root: Path) -> None:
    flip(root / "train/train-000002.tar", 3)


def cut(root: Path) -> None:
    path = root / "val/val-000000.tar"
    path.write_bytes(path.read_bytes()[:100_000])


def remove(root: Path) -> None:
    (root / "train/train-000000.tar").unlink()


def swap(root: Path) -> None:
    first, second = root / "train/train-000000.tar", root / "train/train-000001.tar"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def flip_index(root: Path) -> None:
    flip(root / "val/index/samples.npy", 4000)


def foreign_split(root: Path) -> None:
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")


def no_index(root: Path) -> None:
    (root / "val/index/samples.npy").unlink()


@pytest.mark.parametrize(
    ("damage", "where", "what"),
    [
        (flip_payload, "train/train-000001.tar: sample '", "damaged: the checksum differs"),
        (flip_header, "train/train-000002.tar", "though every sample is whole"),
        (cut, "val/val-000000.tar: sample '", "cut short: column ."),
        (remove, "train/train-000000.tar", "cannot be read: [Errno 2]"),
        (swap, "train/train-000001.tar: sample '", "damaged: the checksum differs"),
        (flip_index, "val/index", "changed since it was made"),
        (foreign_split, "val/index", "not the split that dataset.json records"),
        (no_index, "val", "samples.npy: cannot be read"),
    ],
)
def test_damage_is_found_and_named(
    copy: Path, damage: Callable[[Path], None], where: str, what: str
) -> None:
    damage(copy)
    report = check_dataset(copy)
    assert not report.is_whole
    assert any(
        problem.where.startswith(str(copy / where)) and what in problem.what
        for problem in report.problems
    ), report.problems


def test_a_problem_does_not_hide_another(copy: Path) -> None:
    for damage in (flip_payload, flip_header, cut):
        damage(copy)
    report = check_dataset(copy)
    assert {problem.where.split(": ")[0] for problem in report.problems} == {
        str(copy / name)
        for name in ("train/train-000001.tar", "train/train-000002.tar", "val/val-000000.tar")
    }
    assert len(report.problems) < 30
    assert report.num_more_problems > 200


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prepared data to check"):
        check_dataset(tmp_path)


def test_bench_measures_every_stage(digits: PreparedDataset) -> None:
    report = bench_split(
        digits.splits["train"],
        num_samples=320,
        batch_size=32,
        num_workers=1,
        loader_seconds=0.2,
    )
    assert [stage.name for stage in report.stages] == ["read", "decode", "transform", "hand-off"]
    assert report.num_samples == 320
    assert report.samples_per_second > 0
    assert report.stages[0].seconds > 0
    with pytest.raises(UserError, match=r"batch size: 361 is not in 1 … 360"):
        bench_split(digits.splits["val"], batch_size=361)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archives.write_mnist(tmp_path / "in")
    out = tmp_path / "out"
    words = ["data", "prepare", "mnist", "--out", str(out), "--source", str(tmp_path / "in")]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        f"{out}: 60 train, 20 val samples\n"
        "  train: 10 classes of 6 samples\n"
        "  val: 10 classes of 2 samples\n"
        "  note: train: 60 samples, the published set has 60000\n"
        "  note: val: 20 samples, the published set has 10000\n"
    )
    assert "writing: 80 of 80 samples" in printed.err
    assert main(words) == 0
    assert "is there already" in capsys.readouterr().out
    assert main(["data", "check", str(out)]) == 0
    assert "whole: 60 train, 20 val samples" in capsys.readouterr().out
    assert main(["data", "bench", str(out / "train"), "--batch", "8", "--seconds", "0.1"]) == 0
    assert "hand-off" in capsys.readouterr().out
    flip(out / "train/train-000000.tar", 800)
    assert main(["data", "check", str(out)]) == 2
    printed = capsys.readouterr()
    assert "train-000000.tar" in printed.out
    assert "1 problem: " in printed.err


def test_index_command(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "train/index/samples.npy").read_bytes()
    shutil.rmtree(copy / "train/index")
    assert main(["data", "index", str(copy / "train/train-{000000..000002}.tar")]) == 0
    assert "1437 samples, 10 classes" in capsys.readouterr().out
    assert (copy / "train/index/samples.npy").read_bytes() == before


def test_help_names_every_data_set() -> None:
    assert data_command._DATASETS.split(", ") == list(DATASETS)
