"""DeepSpeed compiles its optimizers at the first ZeRO run: what is said, and what a stop does."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from warm_processes import say_into, start_warm

from msam_scale.config import load_config
from msam_scale.errors import UserError
from msam_scale.optimization.from_config import optimizer_builder

_CONFIG = """
model: {source: msam_scale, name: wrn-10-1}
data: {train: DIGITS/train}
objective: {micro_batches: 4}
batch: {size: 32, norm_samples: 8}
optimizer: {name: deepspeed_adamw, lr: 1.0e-3}
training: {steps: 1}
sharding: {strategy: zero1}
"""
# Says as the real one does what it is, and has a way of its own to compile.
_COMPILER = """#!/bin/sh
case " $* " in *" -c "*) COMPILES;; esac
exec c++ "$@"
"""


def _compiler(path: Path, compiles: str) -> Path:
    path.write_text(_COMPILER.replace("COMPILES", compiles))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("compiler", "named"),
    [
        (None, "the C++ compiler nowhere/c++ is missing (install g++"),
        (
            "echo 'x.cpp:1:1: fatal error: no y.h'; seq 9000; exit 1",
            "x.cpp:1:1: fatal error: no y.h",
        ),
    ],
)
def test_a_build_that_fails_is_a_line(
    compiler: str | None,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = "nowhere/c++" if compiler is None else str(_compiler(tmp_path / "c++", compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setenv("CXX", path)
    config = load_config(
        {
            "batch": {"size": 64},
            "objective": {"micro_batches": 8},
            "optimizer": {"name": "deepspeed_adam", "lr": 0.1},
            "sharding": {"strategy": "zero1"},
        }
    )
    build = optimizer_builder(config)
    with pytest.raises(UserError) as caught:
        build([torch.nn.Parameter(torch.zeros(3))])
    message = str(caught.value)
    assert message.startswith("optimizer: DeepSpeed cannot compile its FusedAdam: ")
    assert named in message
    assert "torch_adam: true" in message
    assert len(message) < 600
    assert "\n" not in message
    assert "DeepSpeed compiles its FusedAdam, which takes minutes" in caplog.text


def _train(config: str, folder: str) -> None:
    say_into(f"{folder}/log")
    os.chdir(folder)
    os.environ.update(TORCH_EXTENSIONS_DIR=f"{folder}/extensions", CXX=f"{folder}/slow-c++")
    from launch.train import _end, main

    _end(main([config]))


def test_a_stop_during_a_build_ends_the_compiler(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "run.yaml").write_text(_CONFIG.replace("DIGITS", str(digits)))
    _compiler(
        tmp_path / "slow-c++", f"echo $$ >> {shlex.quote(str(tmp_path))}/pids; exec sleep 300"
    )
    run = start_warm(_train, str(tmp_path / "run.yaml"), str(tmp_path))
    pids, log = tmp_path / "pids", tmp_path / "log"
    try:
        end = time.monotonic() + 120
        while not pids.exists():
            assert run.is_alive(), log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "DeepSpeed compiles its FusedAdam" in log.read_text()
        compilers = [int(pid) for pid in pids.read_text().split()]
        assert run.pid is not None
        os.kill(run.pid, signal.SIGTERM)
        run.join(60)
        assert run.exitcode == 75, log.read_text()
        assert "SIGTERM: stopped before training" in log.read_text()
        while any(map(psutil.pid_exists, compilers)):
            assert time.monotonic() < end, "compilers stay behind"
            time.sleep(0.05)
    finally:
        run.kill()
        run.join()
