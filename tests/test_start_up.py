"""A process imports what its run uses, and nothing else that takes long."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import Run, engine_for, own_part, settings
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from msam_scale.layers.keyed_dropout import KeyedMask
from msam_scale.monitoring.throughput import flops_of_sample
from msam_scale.optimization.eager import without_compiler
from msam_scale.optimization.optimizers import _by_name, optimizer_arguments

CONFIG = """
model: {source: msam_scale, name: wrn-10-1}
data: {train: DIGITS/train, val: DIGITS/val}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 64, norm_samples: 16}
optimizer: {name: adamw, lr: 0.01}
training: {steps: 2, ema: 0.5}
monitor: {every: 1, progress: false}
checkpoint: {every: 1}
"""

# The compiler imports FSDP, DTensors, sympy and Triton; each of the others takes half a second and
# more, in every rank.
NEVER_NEEDED = [
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "sympy",
    "deepspeed",
    "timm",
    "transformers",
    "torchvision",
    "scipy",
    "sklearn",
    "pandas",
    "matplotlib",
]

# Prints what is loaded after each stage, as JSON.
PROGRAM = """
import contextlib, io, json, shutil, sys
from pathlib import Path
watched, config = json.loads(sys.argv[1]), sys.argv[2]
loaded = {}

def note(stage):
    loaded[stage] = [name for name in watched if name in sys.modules]

def command(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(list(words)) == 0

from launch.cli import main
command("config", "show", config)
note("config")
import msam_scale
msam_scale.initialize
note("initialize")
command("train", config, "monitor.tensorboard=false")
note("run")
checkpoints = Path("runs/run/checkpoints")
shutil.rmtree(checkpoints / "step-00000002")
(checkpoints / "latest").write_text("step-00000001")
command("train", config)
note("run that goes on")
assert (checkpoints / "step-00000002").is_dir()
print(json.dumps(loaded))
"""


def test_nothing_is_imported_before_it_is_used(tmp_path: Path, digits: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.replace("DIGITS", str(digits)))
    later = ["torch", "torch.utils.flop_counter", "tensorboard"]
    program = [sys.executable, "-c", PROGRAM, json.dumps(later + NEVER_NEEDED), str(config)]
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "config": [],
        "initialize": ["torch"],
        "run": ["torch", "torch.utils.flop_counter"],
        "run that goes on": later,
    }


OPTIMIZERS = _by_name()


def _trained(
    cls: type[torch.optim.Optimizer], change: Callable[[torch.optim.Optimizer, int], Any]
) -> tuple[torch.optim.Optimizer, torch.Tensor]:
    """Six steps on gradients of noise, with something done before each."""
    generator = torch.Generator().manual_seed(3)
    weights = nn.Parameter(torch.randn(4, 3, generator=generator))
    optimizer = cls([weights], **optimizer_arguments(cls, {"lr": 0.01}))
    for step in range(6):
        change(optimizer, step)
        optimizer.zero_grad()
        weights.grad = torch.randn(4, 3, generator=generator)
        optimizer.step()
    return optimizer, weights.detach()


def _loads_its_own_state(optimizer: torch.optim.Optimizer, step: int) -> None:
    if step == 3:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.param_groups[0]["lr"] = 0.02


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_without_the_compiler_are_torchs(name: str) -> None:
    """Equal weights bit for bit, one name, torch's own class in copies."""
    cls = OPTIMIZERS[name]
    expected, weights = _trained(cls, _loads_its_own_state)
    optimizer, own_weights = _trained(without_compiler(cls), _loads_its_own_state)
    assert torch.equal(own_weights, weights)
    assert isinstance(optimizer, cls)
    assert (type(optimizer).__name__, str(optimizer)) == (cls.__name__, str(expected))
    copied = copy.deepcopy(optimizer)
    assert type(copied) is cls
    assert str(copied.state_dict()) == str(expected.state_dict())


def test_hooks_schedules_and_closures_are_torchs() -> None:
    """A closure computes gradients inside a step, which itself computes without."""
    weights = nn.Parameter(torch.tensor([2.0]))
    optimizer = without_compiler(torch.optim.SGD)([weights], lr=0.25)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> float:
        seen.append("closure")
        optimizer.zero_grad()
        loss = (weights**2).sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    schedule.step()
    assert seen == ["before", "closure", "after"]
    assert weights.tolist() == [1.0]
    assert weights.is_leaf
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_other_peoples_optimizers_stay_as_they_are() -> None:
    class Own(torch.optim.SGD):
        pass

    assert without_compiler(Own) is Own


class _Engine:
    def __init__(self, module: nn.Module) -> None:
        self.module = module


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(nn.functional.conv1d(inputs, torch.ones(5, 5, 1)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("compiled", [False, True])
def test_operations_are_counted_as_torch_counts_them(compiled: bool) -> None:
    """Also where the forward is compiled, of which nothing is compiled for the count."""
    model = _Attention().eval()
    inputs = torch.randn(2, 5, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as expected:
        model(inputs)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    forward = torch.compile(model, backend="eager") if compiled else model
    found = flops_of_sample(_Engine(model), lambda: forward(inputs))
    assert found == 3 * expected.get_total_flops() > 0
    assert not torch._dynamo.utils.counters["frames"]


@pytest.mark.filterwarnings("ignore")
def test_masks_stay_out_of_what_is_compiled_later() -> None:
    """A user compiles blocks of an engine's model: no pass is compiled anew for its masks."""
    engine = engine_for(Run(settings(micro_batches=2, chunk=8), model="dropout_vit"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in engine.module.blocks:  # type: ignore[union-attr]
        block.compile(backend="eager")
    frames = []
    for step in range(3):
        engine.train_step(own_part(engine, mini_batch(step)))
        frames.append(torch._dynamo.utils.counters["frames"]["ok"])
    assert frames[0] == frames[-1] > 0
    reasons = torch._dynamo.utils.counters["graph_break"]
    assert any(f"function {KeyedMask.__name__}.masked" in reason for reason in reasons)
    assert build_model("dropout_vit").state_dict().keys() == engine.full_state_dict().keys()
