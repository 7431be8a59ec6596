"""Every file of a checkpoint damaged in every way: noticed, named, and the one before is used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import mini_batch
from engine_runs import Run, engine_for, own_part, settings
from rank_pool import OnRanks
from safetensors.torch import save_file
from saved_state import edit_progress, reseal, rewrite_tensors

from data_pipelines.errors import UserError
from launch.cli import main
from msam_scale.checkpoint import (
    DamagedCheckpointError,
    Progress,
    faults_of,
    find_checkpoint,
    read_weights,
)
from msam_scale.checkpoint.manifest import Manifest
from msam_scale.training.resuming import Candidates


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    """One bit in the middle: of a tensor, of a figure, of a checksum."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _remove(path: Path) -> None:
    path.unlink()


_DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "a bit flipped": _flip,
    "removed": _remove,
}


def _damage_all(config: dict[str, Any], folder: str) -> list[tuple[str, str, int]]:
    """Of each file and damage what the user is told, and the step that is gone on from."""
    directory = Path(folder)
    engine = engine_for(Run(config))
    for step in range(2):
        engine.train_step(own_part(engine, mini_batch(step)))
        engine.save_checkpoint(directory)
    newest = directory / "step-00000002"
    names = sorted(path.name for path in newest.iterdir())
    seen = []
    for name in names:
        for kind, damage in _DAMAGES.items():
            kept = (newest / name).read_bytes()
            engine.ranks.gathered(None)
            if engine.ranks.is_first:
                damage(newest / name)
            engine.ranks.gathered(None)
            found = Candidates.in_directory(directory)
            _, found = found.load(engine)
            (message,) = found.damaged.values()
            assert str(newest / name) in message, (name, kind, message)
            seen.append((name, kind, engine.num_steps_done))
            engine.ranks.gathered(None)
            if engine.ranks.is_first:
                (newest / name).write_bytes(kept)
    engine.ranks.gathered(None)
    Candidates.in_directory(directory).load(engine)
    assert engine.num_steps_done == 2, "whole again"
    return seen


def test_the_damage_matrix(tmp_path: Path, on_ranks: OnRanks) -> None:
    config = settings(micro_batches=4, strategy="fsdp")
    seen = on_ranks(2, _damage_all, config, str(tmp_path))[0]
    assert {name for name, _, _ in seen} >= {"manifest.json", "progress.json"}
    assert sum(name.startswith("tensors") for name, _, _ in seen) >= 2 * len(_DAMAGES)
    assert all(step == 1 for _, _, step in seen)


def test_without_checksums_damage_goes_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the matrix can fail: no reader stumbles over a flipped bit of a tensor."""
    engine = engine_for(Run(settings(micro_batches=4)))
    folder = engine.save_checkpoint(tmp_path)
    _flip(folder / "tensors-00000-00000.safetensors")
    with pytest.raises(DamagedCheckpointError, match="checksum"):
        engine.load_checkpoint(folder)
    monkeypatch.setattr(Manifest, "verify", lambda *_, **__: None)
    engine.load_checkpoint(folder)


def test_latest_names_one_that_is_intact_once_damaged_ones_are_set_aside(tmp_path: Path) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    folders = [engine.save_checkpoint(tmp_path)]
    engine.train_step(mini_batch(0))
    folders.append(engine.save_checkpoint(tmp_path))
    _truncate(folders[1] / "progress.json")
    candidates = Candidates.in_directory(tmp_path)
    assert candidates.newest == folders[0]
    (told,) = candidates.put_in_order()
    assert told.startswith("passed over step-00000001: ")
    assert told.endswith("it is kept as damaged-step-00000001")
    assert find_checkpoint(tmp_path) == folders[0]


def _run(config: str, *words: str) -> int:
    return main(["train", config, "monitor.progress=false", "monitor.tensorboard=false", *words])


def test_a_run_passes_over_damaged_checkpoints_and_says_so(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("training.steps=4", "checkpoint.every=1", "checkpoint.keep=9", "data.val=null")
    assert _run(config, *words) == 0
    folder = Path("runs/small/checkpoints")
    shutil.copytree(folder / "step-00000004", "whole")
    _flip(folder / "step-00000004" / "tensors-00000-00000.safetensors")
    _truncate(folder / "step-00000003" / "progress.json")
    capsys.readouterr()

    assert main(["checkpoint", "verify", "runs/small"]) == 2
    told = capsys.readouterr().out
    assert "step-00000004/tensors-00000-00000.safetensors: damaged: its checksum" in told
    assert "step-00000003/progress.json: damaged" in told
    assert "step-00000002: intact" in told

    assert _run(config, *words) == 0
    error = capsys.readouterr().err
    assert "step-00000004/tensors-00000-00000.safetensors: damaged" in error
    assert "step-00000003/progress.json: damaged" in error
    assert "kept as damaged-step-00000004" in error
    again = dict(read_weights(folder / "step-00000004"))
    assert all(torch.equal(again[n], t) for n, t in read_weights(Path("whole")).items())
    assert not list(faults_of(folder / "step-00000004"))
    assert (folder / "damaged-step-00000003").is_dir(), "nothing is thrown away"

    # One that is asked for by name is not exchanged for another.
    _flip(folder / "step-00000004" / "tensors-00000-00000.safetensors")
    path = f"checkpoint.start_from={folder}/step-00000004"
    assert _run(config, *words, "run.name=another", path) == 2
    assert "tensors-00000-00000.safetensors: damaged" in capsys.readouterr().err

    for manifest in folder.glob("step-*/manifest.json"):
        _truncate(manifest)
    assert _run(config, *words) == 2
    error = capsys.readouterr().err
    assert "no checkpoint of this run is intact" in error
    assert error.count("manifest.json: damaged") == 4
    assert "Traceback" not in error


# What somebody else may have written.


def _hostile(folder: Path, name: str) -> None:
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    record = next(iter(content["files"].values()))
    if name == "a path out of the folder":
        content["files"]["../../secret.safetensors"] = record
    elif name == "an absolute path":
        content["files"]["/etc/passwd"] = record
    elif name == "a pickle":
        (folder / "tensors-00000-00000.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        content["files"]["tensors-00000-00000.pt"] = record
    elif name == "a link":
        target = folder / "tensors-00000-00000.safetensors"
        target.rename(folder / "elsewhere")
        target.symlink_to(folder / "elsewhere")
        return
    elif name == "deep nesting":
        manifest.write_text('{"format":' * 100_000)
        return
    elif name == "a negative size":
        record["size"] = -1
    elif name == "a size of terabytes":
        record["size"] = 1 << 42
    elif name == "a version from the future":
        content["version"] = 3
    elif name == "a pipe":
        (folder / "progress.json").unlink()
        os.mkfifo(folder / "progress.json")
        return
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("a path out of the folder", "is no file of a checkpoint"),
        ("an absolute path", "is no file of a checkpoint"),
        ("a pickle", "is no file of a checkpoint"),
        ("a link", "a link, and checkpoints have none"),
        ("deep nesting", "manifest.json: damaged"),
        ("a negative size", "manifest.json: damaged"),
        ("a size of terabytes", "bytes long instead of"),
        ("a version from the future", "version 3; this msam_scale reads version 2"),
        ("a pipe", "progress.json: damaged: it is missing"),
    ],
)
def test_a_hostile_checkpoint_is_refused(name: str, complaint: str, tmp_path: Path) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    folder = engine.save_checkpoint(tmp_path)
    _hostile(folder, name)
    with pytest.raises(DamagedCheckpointError, match=complaint):
        engine.load_checkpoint(folder)


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    """Parts that overlap, leave gaps or claim places that are not theirs."""
    engine = engine_for(Run(settings(micro_batches=4)))
    folder = engine.save_checkpoint(tmp_path)
    tensors = {name: value.clone() for name, value in read_weights(folder).items()}

    def refused(offsets: str, complaint: str) -> None:
        rewrite_tensors(folder, {f"model/{name}": value for name, value in tensors.items()})
        path = folder / "tensors-00000-00000.safetensors"
        some = {"model/head.weight": tensors["head.weight"]}
        save_file(some, path, metadata={"DCP_SHARDING_INFO": offsets})
        reseal(folder)
        assert any(complaint in fault for fault in faults_of(folder)), list(faults_of(folder))
        with pytest.raises(UserError, match=complaint):
            engine.load_checkpoint(folder)

    refused('{"model/head.weight": {"saved_offsets": [0, 1]}}', "twice or not at all")
    refused('{"model/head.weight": {"saved_offsets": [1099511627776, 0]}}', "twice or not at all")
    refused('{"model/head.weight": {"saved_offsets": [-1, 0]}}', "no numbers")
    refused('{"model/head.weight": {"saved_offsets": [0]}}', "no place is given")
    refused('{"model/head.weight": 7}', "its header")
    refused("[" * 100_000, "its header")


def test_a_config_inside_that_is_none_is_refused(tmp_path: Path) -> None:
    engine = engine_for(Run(settings(micro_batches=4)))
    folder = engine.save_checkpoint(tmp_path)
    edit_progress(folder, lambda progress: progress["config"].update(run="code"))
    with pytest.raises(DamagedCheckpointError, match=r"progress.json: its config"):
        Progress.read(folder).resolved_config(folder)
