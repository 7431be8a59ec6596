"""One mSAM step of a vision transformer that is sharded over ranks, and what each rank held.

    torchrun --nproc-per-node 4 tests/benchmarks/vit_large_sharded.py

The model is built without memory and given its values block by block. Printed by rank: the peak of
its resident memory over what the process had before there was a model, and the bytes that the same
step would need with replicated parameters, activations apart. `--limit-gib` bounds what a rank may
have on top of its start, so that what does not fit is refused by the operating system:

    torchrun --nproc-per-node 4 tests/benchmarks/vit_large_sharded.py --limit-gib 4
    torchrun … tests/benchmarks/vit_large_sharded.py --limit-gib 4 --strategy replicated
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist

import msam_scale
from msam_scale.ranks import join, leave

# Weights, gradient, ascent gradient and Adam's two moments, float32.
_COPIES = 5


def _gib(num_bytes: float) -> float:
    return round(num_bytes / 2**30, 2)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit(gib: float) -> None:
    """Has Linux refuse this process more than `gib` of private memory on top of what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
    most = pages * resource.getpagesize() + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _warm_up(config: dict[str, Any]) -> None:
    """Imports and groups of processes, which belong to no model."""
    layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
    engine = msam_scale.initialize(torch.nn.Sequential(*layers), config=config)
    engine.train_step((torch.ones(1, 4), torch.zeros(1, dtype=torch.long)))


def main() -> None:
    """Runs the step on the ranks that torchrun has started."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--strategy", default="fsdp")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--limit-gib", type=float)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ranks = join()
    config: dict[str, Any] = {
        "batch": {"size": ranks.size, "chunk": 1},
        "objective": {"micro_batches": 1},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "sharding": {"strategy": arguments.strategy},
        "training": {"activation_checkpointing": True},
    }
    _warm_up(config)
    if arguments.limit_gib is not None:
        _limit(arguments.limit_gib)
    before = _peak()
    torch.manual_seed(0)
    with msam_scale.deferred_initialization():
        model = timm.create_model(arguments.model, img_size=arguments.image_size)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = msam_scale.initialize(model, config=config)
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(ranks.rank)
    images = torch.randn(1, 3, arguments.image_size, arguments.image_size, generator=generator)
    step = engine.train_step((images, torch.tensor([ranks.rank])))
    result = {
        "rank": ranks.rank,
        "parameters": num_parameters,
        "loss": step.loss,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gib": _gib(_peak() - before),
        "replicated_gib": _gib(4 * _COPIES * num_parameters),
    }
    results: list[Any] = [None] * ranks.size
    if ranks.size > 1:
        dist.all_gather_object(results, result)
    else:
        results = [result]
    if ranks.is_first:
        for line in results:
            print(json.dumps(line))
    del engine, model
    leave()


if __name__ == "__main__":
    main()
