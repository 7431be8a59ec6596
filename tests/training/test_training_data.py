"""The `data` section in whole runs: orders, mixing, damage, remote shards, photographs."""

from __future__ import annotations

import functools
import http.server
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from saved_state import edit_progress

from data_pipelines import SampleIndex, build_index
from data_pipelines.index.format import offset_field
from launch.cli import main
from msam_scale.checkpoint import Progress

# Losses and norms of a few float64 steps, on any layout.
_SHORT = ("precision=float64", "training.steps=3", "monitor.every=1", "training.eval_every=3")
_EVERYTHING = (
    "data.order=lanes:lanes=4,shards=2",
    "data.transform=cifar_zero:statistics=none",
    "training.mixup=0.4",
    "training.cutmix=1.0",
)


def _train(config: str, *words: str) -> int:
    return main(["train", config, "monitor.progress=false", *words])


def _lines(run: str) -> list[dict[str, Any]]:
    text = Path("runs", run, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _figures(run: str) -> list[list[float]]:
    names = ("loss", "grad_norm", "ascent_norm", "accuracy")
    return [[line[name] for name in names if name in line] for line in _lines(run)]


def _loader_state(run: str, *, step: int) -> dict[str, Any]:
    state: dict[str, Any] = Progress.read(Path(f"runs/{run}/checkpoints/step-{step:08d}")).extra[
        "loader"
    ]
    return state


def _assert_alike(run: str, other: str) -> None:
    for line, expected in zip(_figures(run), _figures(other), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)


def test_mixed_lanes_do_not_depend_on_the_layout(config: str) -> None:
    """Mixup and cutmix take partners that other ranks train on, or other chunks."""
    words = (*_SHORT, *_EVERYTHING)
    assert _train(config, *words, "run.name=one") == 0
    layout = ("batch.chunk=16", "data.workers=2", "data.resident=true")
    assert _train(config, *words, *layout, "run.name=chunks") == 0
    command = [sys.executable, "-m", "launch.cli", "train", config, "--nproc", "2"]
    done = subprocess.run(
        [*command, *words, "run.name=two"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    _assert_alike("chunks", "one")
    _assert_alike("two", "one")
    without_mixing = [word for word in words if "mix" not in word]
    assert _train(config, *without_mixing, "run.name=plain") == 0
    assert abs(_figures("plain")[0][0] - _figures("one")[0][0]) > 1e-3


def test_a_run_goes_on_within_an_epoch_of_lanes(config: str) -> None:
    words = (*_SHORT, *_EVERYTHING, "training.steps=6", "checkpoint.every=2", "checkpoint.keep=9")
    assert _train(config, *words, "run.name=whole") == 0
    assert _loader_state("whole", step=4)["order"] == "lanes:lanes=4,shards=2"
    shutil.copytree("runs/whole", "runs/parts")
    for step in (4, 6):
        shutil.rmtree(f"runs/parts/checkpoints/step-{step:08d}")
    Path("runs/parts/checkpoints/latest").write_text("step-00000002\n")
    # As saved by a version that did not have a setting yet.
    edit_progress(
        "runs/parts/checkpoints/step-00000002",
        lambda progress: progress["config"]["data"].pop("resident"),
    )
    assert _train(config, *words, "run.name=parts", "batch.chunk=16") == 0
    _assert_alike("parts", "whole")


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("data.order=lanes:lanes=5", "data.order: "),
        ("data.order=shuffled", "data.order: "),
        ("data.transform=inception_vit:sise=64", "data.transform: "),
        ("data.train=http://localhost:9/train", "cache_dir"),
        ("data.train=pipe:cat {name}", "data.allow_commands"),
        ("data.max_bad_samples=5", "data.max_bad_samples: 5 has no effect"),
        ("training.mixup=0", "training.mixup: "),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    word: str, complaint: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(config, word) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("runs").exists()


def _damaged_copy(digits: Path, folder: Path) -> Path:
    """The digits with a byte changed in the files of three samples."""
    shutil.copytree(digits, folder)
    index = SampleIndex.open(folder / "train")
    column = index.meta.columns[0]
    for sample_id in (5, 300, 900):
        record = index.samples[sample_id]
        with index.shard_path(int(record["shard"])).open("r+b") as shard:
            shard.seek(int(record[offset_field(column)]))
            byte = shard.read(1)[0]
            shard.seek(-1, io.SEEK_CUR)
            shard.write(bytes([byte ^ 0xFF]))
    return folder


def test_damaged_samples_are_replaced_and_listed(
    config: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = _damaged_copy(digits, tmp_path / "damaged")
    words = (f"data.train={damaged}/train", "training.epochs=1", "training.steps=null")
    assert _train(config, *words, "run.name=raise") == 2
    assert "checksum" in capsys.readouterr().err
    words = (*words, "data.on_error=substitute", "precision=float64", "monitor.every=11")
    assert _train(config, *words, "run.name=one") == 0
    command = [sys.executable, "-m", "launch.cli", "train", config, "--nproc", "2"]
    done = subprocess.run(
        [*command, *words, "run.name=two"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    _assert_alike("two", "one")
    states = [_loader_state(run, step=11)["bad_samples"] for run in ("one", "two")]
    assert states[0] == states[1]
    assert 1 <= len(states[0]) <= 3
    assert all("damaged/train" in bad["where"] for bad in states[0])
    # A switch on the way, where the loader is made anew, forgets none of them.
    phases = 'objective.phases=[{"until": 0.9, "algorithm": "vanilla"}]'
    assert _train(config, *words, "run.name=phases", phases) == 0
    assert _loader_state("phases", step=11)["bad_samples"] == states[0]


@pytest.fixture
def served_digits(digits: Path) -> Iterator[str]:
    """The address of a server of the digits, without range requests as plain servers are."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    handler = functools.partial(Quiet, directory=str(digits))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_remote_shards_are_cached_and_train_alike(config: str, served_digits: str) -> None:
    assert _train(config, *_SHORT, "run.name=local") == 0
    remote = (f"data.train={served_digits}/train", f"data.val={served_digits}/val")
    words = (*_SHORT, *remote, "data.cache_dir=cache", "data.cache_limit=100000000")
    assert _train(config, *words, "run.name=remote") == 0
    _assert_alike("remote", "local")
    assert list(Path("cache").rglob("*.tar"))


def _photographs(folder: Path, *, number: int) -> str:
    """JPEG files of several sizes, as someone else's WebDataset shards would hold them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pattern = str(folder / "photos-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=16, verbose=0) as writer:
        for index in range(number):
            height, width = rng.integers(40, 90, size=2)
            image = np.kron(
                rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), np.ones((12, 12, 1), np.uint8)
            )[:height, :width]
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "JPEG")
            writer.write({"__key__": f"{index:04d}", "jpg": stream.getvalue(), "cls": index % 4})
    build_index([folder])
    return str(folder)


def test_photographs_of_other_peoples_shards(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images that differ in size are brought to the one of the transform."""
    photos = _photographs(tmp_path / "photos", number=64)
    words = (f"data.train={photos}", f"data.val={photos}", "batch.size=32", "batch.norm_samples=8")
    assert _train(config, *words, "run.name=none") == 2
    assert "differ in size" in capsys.readouterr().err
    words = (*words, "data.transform=inception_tv:size=32", "training.steps=3", "data.workers=1")
    assert _train(config, *words, "training.eval_every=3", "run.name=photos") == 0
    assert _figures("photos")[-1][1] >= 0


def test_a_hybrid_run_does_not_depend_on_the_layout_or_a_stop_at_its_switch(config: str) -> None:
    """Vanilla, then SAM on all ranks together, then mSAM; mixup is drawn for each one's parts."""
    phases = "[{until: 0.33, algorithm: vanilla}, {until: 0.66, algorithm: sam}]"
    words = (
        *_SHORT,
        *_EVERYTHING,
        "training.steps=6",
        "batch.norm_samples=32",
        "checkpoint.every=2",
        "checkpoint.keep=9",
        f"objective.phases={phases}",
    )
    assert _train(config, *words, "run.name=whole", "data.workers=1") == 0
    command = [sys.executable, "-m", "launch.cli", "train", config, "--nproc", "2"]
    done = subprocess.run(
        [*command, *words, "run.name=two"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    _assert_alike("two", "whole")
    shutil.copytree("runs/whole", "runs/parts")
    for step in (4, 6):
        shutil.rmtree(f"runs/parts/checkpoints/step-{step:08d}")
    Path("runs/parts/checkpoints/latest").write_text("step-00000002\n")
    assert _train(config, *words, "run.name=parts", "batch.chunk=32") == 0
    _assert_alike("parts", "whole")
    trained = [line for line in _lines("whole") if line["split"] == "train"]
    assert ["ascent_norm" in line for line in trained] == [False] * 2 + [True] * 4
