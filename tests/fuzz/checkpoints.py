"""Checkpoints of a small run, damaged and sealed again so that their checksums fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch
from harness import call, damage, damage_bytes, held, json_bytes
from saved_state import checkpoint_tensors, reseal, rewrite_tensors

from msam_scale.checkpoint.folder import MANIFEST
from msam_scale.checkpoint.progress import PROGRESS

_CONFIG = """
run: {name: small, dir: "FOLDER/runs"}
model: {source: msam_scale, name: wrn-10-1}
data: {train: "DIGITS/train", on_error: substitute}
objective: {algorithm: msam, micro_batches: 2, rho: 0.05}
batch: {size: 16, norm_samples: 8}
optimizer: {name: adamw, lr: 0.01}
training: {steps: 2, ema: 0.9}
checkpoint: {every: 1}
monitor: {every: 1, tensorboard: false, progress: false, loss_spike: 6}
"""
_LENGTHEN = "training.steps=3"


class Checkpoints:
    """Cases with copies of a run of two checkpoints, of which the newer is damaged.

    Args:
        home: an empty folder.
        digits: prepared data.
    """

    def __init__(self, home: Path, digits: Path) -> None:
        self._home, self._config = home, home / "small.yaml"
        text = _CONFIG.replace("FOLDER", str(home / "case")).replace("DIGITS", str(digits))
        self._config.write_text(text)
        call("train", str(self._config))
        (home / "case").rename(home / "whole")

    def __call__(self, random: Random) -> None:
        """Damages and goes on, looks, exports or starts from it."""
        case = self._home / "case"
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(self._home / "whole", case)
        run = case / "runs/small"
        _damage(run / "checkpoints/step-00000002", random)
        if random.randrange(2):  # nothing to fall back to
            shutil.rmtree(run / "checkpoints/step-00000001")
        start = ["train", str(self._config), _LENGTHEN]
        words: list[list[str]] = [
            start,
            start,
            start,
            [*start, "run.name=other", f"checkpoint.start_from={run}"],
            ["checkpoint", "verify", str(run)],
            ["checkpoint", "inspect", str(run), "--tensors"],
            ["export", str(run), "--format", "safetensors", "--out", str(case / "out")],
            ["export", str(run), "--format", "safetensors", "--averaged", "--out", str(case / "o")],
        ]
        with held(case):
            call(*random.choice(words))


def _damage(checkpoint: Path, random: Random) -> None:
    kind = random.choice(["progress", "progress", "bytes", "manifest", "header", "tensors"])
    if kind == "progress":
        progress = json.loads((checkpoint / PROGRESS).read_text())
        for _ in range(random.randint(1, 2)):
            damage(progress, random)
        (checkpoint / PROGRESS).write_bytes(json_bytes(progress))
    elif kind == "bytes":
        path = random.choice([checkpoint / PROGRESS, *checkpoint.glob("*.safetensors")])
        path.write_bytes(damage_bytes(path.read_bytes(), random))
    elif kind == "header":
        _damage_header(random.choice(list(checkpoint.glob("*.safetensors"))), random)
    elif kind == "tensors":
        tensors = checkpoint_tensors(checkpoint)
        _damage_tensors(tensors, random)
        rewrite_tensors(checkpoint, tensors)
    reseal(checkpoint)
    if kind == "manifest":
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        damage(manifest, random)
        (checkpoint / MANIFEST).write_bytes(json_bytes(manifest))


def _damage_header(path: Path, random: Random) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    if random.randrange(2):
        damage(header, random)
    else:
        places = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
        damage(places, random)
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(places)
    changed = json_bytes(header)
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])


def _damage_tensors(tensors: dict[str, torch.Tensor], random: Random) -> None:
    name = random.choice(sorted(tensors))
    tensor, other = tensors[name], tensors[random.choice(sorted(tensors))]
    part = name.rpartition("/")[0] + "/"
    changes: list[torch.Tensor | None] = [
        None,
        other,
        tensor.flatten(),
        tensor[None],
        tensor.flatten()[:0],
        torch.zeros(()),
        *(tensor.to(dtype) for dtype in (torch.float64, torch.float16, torch.int32, torch.bool)),
    ]
    kind = random.randrange(len(changes) + 2)
    if kind == len(changes):
        tensors[f"{name}x"] = tensors.pop(name)
    elif kind > len(changes):  # all of a kind
        for one in [one for one in tensors if one.startswith(part)]:
            del tensors[one]
    elif (changed := changes[kind]) is None:
        del tensors[name]
    else:
        tensors[name] = changed
