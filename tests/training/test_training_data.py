"""The `data` section in whole runs: mistakes, damage, remote shards, photographs."""

from __future__ import annotations

import functools
import http.server
import io
import json
import multiprocessing
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_pipelines import build_index
from launch.cli import main
from msam_scale import initialize
from msam_scale.training.evaluation import Evaluator
from msam_scale.training.prepare import prepare_run

# Losses and norms of a few float64 steps.
_SHORT = ("precision=float64", "training.steps=3", "monitor.every=1", "training.eval_every=3")


def _train(config: str, *words: str) -> int:
    return main(["train", config, "monitor.progress=false", *words])


def _lines(run: str) -> list[dict[str, Any]]:
    text = Path("runs", run, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _figures(run: str) -> list[list[float]]:
    names = ("loss", "grad_norm", "ascent_norm", "accuracy")
    return [[line[name] for name in names if name in line] for line in _lines(run)]


def _assert_alike(run: str, other: str) -> None:
    for line, expected in zip(_figures(run), _figures(other), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)


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


def test_damaged_data_stop_the_run(
    config: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(digits / "train", tmp_path / "damaged")
    shard = sorted(damaged.glob("*.tar"))[0]
    content = bytearray(shard.read_bytes())
    content[content.index(b"NUMPY") + 150] ^= 1
    shard.write_bytes(content)
    words = (f"data.train={damaged}", "training.epochs=1", "training.steps=null")
    assert _train(config, *words) == 2
    error = capsys.readouterr().err
    assert shard.name in error
    assert "checksum" in error
    assert "Traceback" not in error


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
    assert _train(config, *_SHORT, "data.resident=true", "run.name=local") == 0
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
    # Which lies elsewhere, and says where the shards are.
    return str(build_index([folder], out=folder.with_name("index")).directory)


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


def test_validation_data_are_loaded_by_the_same_processes_each_time(config: str) -> None:
    prepared = prepare_run(config, overrides=("data.workers=2",), world_size=1)
    engine = initialize(prepared.model, config=prepared.config, num_steps=8)
    others = set(multiprocessing.active_children())
    evaluator = Evaluator(engine, prepared.data)
    first = evaluator.evaluate()
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    assert evaluator.evaluate() == first
    assert set(multiprocessing.active_children()) - others == workers
    evaluator.close()
    assert not set(multiprocessing.active_children()) - others
