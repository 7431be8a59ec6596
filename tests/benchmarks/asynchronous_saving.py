"""How much steps slow down while a checkpoint is written beside them.

    python tests/benchmarks/asynchronous_saving.py

One process, one thread, on the CPU. Steps without a save and steps between the start and the end of
one alternate in a single run; the ratio of their median times is printed, and beside it how long
training is held up by the staging copy and would be by writing. As everywhere here: a ratio says
something, a time does not.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import msam_scale

_DEPTH, _BATCH = 12, 512


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="saves")
    parser.add_argument("--width", type=int, default=1024, help="of each of 12 linear layers")
    arguments = parser.parse_args(argv)
    width = arguments.width
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(_DEPTH)]
    config = {
        "batch": {"size": _BATCH},
        "objective": {"micro_batches": 4},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }
    engine = msam_scale.initialize(nn.Sequential(*layers, nn.Linear(width, 10)), config=config)
    batch = torch.randn(_BATCH, width), torch.randint(10, (_BATCH,))

    def step() -> float:
        start = time.perf_counter()
        engine.train_step(batch)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        engine.train_step(batch)
        engine.begin_checkpoint(folder).result()  # makes the staging memory
        apart: list[float] = []
        beside: list[float] = []
        held_up: list[float] = []
        writing: list[float] = []
        for number in range(arguments.rounds):
            apart += [step() for _ in range(4)]
            start = time.perf_counter()
            pending = engine.begin_checkpoint(Path(folder) / str(number), keep=1)
            held_up.append(time.perf_counter() - start)
            beside.append(step())
            while not pending.is_done:
                beside.append(step())
            pending.result()
            start = time.perf_counter()
            engine.save_checkpoint(Path(folder) / "waits")
            writing.append(time.perf_counter() - start)
    median = statistics.median
    print(f"{len(apart)} steps apart from saves, {len(beside)} beside them")
    print(f"a step beside a save takes {median(beside) / median(apart):.3f} of one apart from it")
    print(f"training is held up for {median(held_up) / median(writing):.3f} of a save that waits")


if __name__ == "__main__":
    main()
