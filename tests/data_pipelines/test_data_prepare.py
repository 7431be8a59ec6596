"""Preparing data sets: readable by WebDataset, the same bytes each time, whole or not at all."""

import gc
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from sklearn.datasets import load_digits

from data_pipelines import PreparedDataset, SampleIndex, ShardReader, UserError, prepare


def files_below(directory: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_digits_are_whole_and_every_class_is_in_both_splits(digits: PreparedDataset) -> None:
    assert digits.num_samples == {"train": 1437, "val": 360}
    assert not digits.already_there
    originals, labels = load_digits(return_X_y=True)
    seen: list[int] = []
    for directory in digits.splits.values():
        index = SampleIndex.open(directory)
        assert min(index.meta.class_counts) > 0
        for place, sample in ShardReader(index).read(range(index.num_samples)):
            number = int(index.key(place))
            seen.append(number)
            assert sample.label == labels[number]
            # The stored bytes give the 17 grey values back exactly.
            assert np.array_equal(np.rint(sample.image.ravel() / 255 * 16), originals[number])
    assert sorted(seen) == list(range(1797))
    assert seen != sorted(seen)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_the_same_samples(digits: PreparedDataset, split: str) -> None:
    index = SampleIndex.open(digits.splits[split])
    shards = [str(index.shard_path(number)) for number in range(len(index.meta.shards))]
    theirs = Counter(
        (sample["__key__"], sample["npy"].shape, sample["npy"].tobytes(), sample["cls"])
        for sample in webdataset.WebDataset(shards, shardshuffle=False).decode()
    )
    ours = Counter(
        (index.key(place), sample.image.shape, sample.image.tobytes(), sample.label)
        for place, sample in ShardReader(index).read(range(index.num_samples))
    )
    gc.collect()
    assert theirs == ours
    assert theirs.total() == index.num_samples


def test_two_preparations_give_the_same_bytes(digits: PreparedDataset, tmp_path: Path) -> None:
    again = prepare("digits", out=tmp_path / "again")
    assert files_below(again.directory) == files_below(digits.directory)
    other = prepare("digits", out=tmp_path / "other", seed=1)
    assert files_below(other.directory) != files_below(digits.directory)


def test_odd_folder_names_are_only_names(tmp_path: Path) -> None:
    made = prepare("digits", out=tmp_path / "100%d {a,b}: x")
    assert SampleIndex.open(made.splits["val"]).num_samples == 360


def test_finished_data_set_is_left_as_it_is(tmp_path: Path) -> None:
    first = prepare("digits", out=tmp_path / "digits")
    times = {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")}
    second = prepare("digits", out=tmp_path / "digits")
    assert second.already_there
    assert (second.splits, second.num_samples) == (first.splits, first.num_samples)
    assert {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")} == times


def test_changed_data_set_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    made = prepare("digits", out=tmp_path / "digits")
    samples_file = made.splits["val"] / "index" / "samples.npy"
    content = samples_file.read_bytes()
    samples_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"val/index/samples.npy: changed since it was made"):
        prepare("digits", out=tmp_path / "digits")
    samples_file.write_bytes(content)
    shutil.copytree(made.splits["val"], tmp_path / "kept")
    shutil.rmtree(made.splits["val"])
    shutil.copytree(made.splits["train"], made.splits["val"])
    with pytest.raises(UserError, match=r"val: not the split that .*dataset.json records"):
        prepare("digits", out=tmp_path / "digits")


def test_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds something that is no prepared data set"):
        prepare("digits", out=tmp_path)
    assert files_below(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(UserError, match=r"thesis.tex: holds something"):
        prepare("digits", out=tmp_path / "thesis.tex")
    prepare("digits", out=tmp_path / "digits")
    with pytest.raises(UserError, match=r"'digits' made with seed 0, not 'digits' with seed 1"):
        prepare("digits", out=tmp_path / "digits", seed=1)


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert not prepare("digits", out=tmp_path / "empty").already_there


def test_unusable_place_is_named() -> None:
    with pytest.raises(UserError, match=r"/proc/nothing/digits: cannot be used"):
        prepare("digits", out="/proc/nothing/digits")


def test_unknown_data_set_gives_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data set 'digit': did you mean 'digits'\?"):
        prepare("digit", out=tmp_path / "digits")


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source and tokenizer: without effect for .*'digits'"):
        prepare("digits", out=tmp_path / "out", source=tmp_path, tokenizer="bert-base-uncased")
    with pytest.raises(UserError, match=r"'cola' needs source and tokenizer: the folder with"):
        prepare("cola", out=tmp_path / "out")
    with pytest.raises(UserError, match=r"source: .*nowhere does not exist; cifar-10-python"):
        prepare("cifar10", out=tmp_path / "out", source=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"val-fraction: 1.5 is not in \[0, 1\)"):
        prepare("image_folder", out=tmp_path / "out", source=tmp_path, val_fraction=1.5)
    with pytest.raises(UserError, match=r"workers: 0, but 1 or more are needed"):
        prepare("digits", out=tmp_path / "out", num_workers=0)
    assert not (tmp_path / "out").exists()
