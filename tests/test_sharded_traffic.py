"""What a step of each strategy sends, by collective and by group."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_models import cross_entropy, mini_batch
from engine_runs import Run, engine_for, own_part, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from report import add_row
from torch.utils._python_dispatch import TorchDispatchMode

_TITLE = "Traffic of a step on 4 ranks: calls and bytes, of gradients and weights (float32)"
_ALGORITHMS: dict[str, dict[str, Any]] = {
    "vanilla": {"algorithm": "vanilla", "micro_batches": 4},
    "SAM": {"algorithm": "sam"},
    "mSAM, m=4": {"micro_batches": 4},
}

Key = tuple[str, int]
Sent = dict[Key, tuple[int, int]]


class Collectives(TorchDispatchMode):
    """Counts collectives by (name, ranks in the group): calls and bytes; small ones are left out.

    Norms, losses and overflow flags travel in tensors of a few numbers.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Key] = Counter()
        self.num_bytes: Counter[Key] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.name().partition("::")[2].strip("_")
            num_bytes = max(_bytes(value) for value in args)
            if num_bytes > 64:
                key = name, _group_size(args)
                self.calls[key] += 1
                self.num_bytes[key] += num_bytes
        return func(*args, **(kwargs or {}))

    def sent(self) -> Sent:
        """Calls and bytes by key."""
        return {key: (self.calls[key], self.num_bytes[key]) for key in self.calls}


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return 0


def _group_size(args: tuple[Any, ...]) -> int:
    for value in args:
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return dist.ProcessGroup.unbox(value).size()
    raise AssertionError("a collective without a group")


def _sent(config: dict[str, Any]) -> Sent:
    """What the second step sends."""
    engine = engine_for(Run(config, model="dropout_vit"))
    engine.train_step(own_part(engine, mini_batch(0, dtype=torch.float32)))
    with Collectives() as collectives:
        engine.train_step(own_part(engine, mini_batch(1, dtype=torch.float32)))
    return collectives.sent()


def _between_groups(sent: Sent) -> tuple[int, int]:
    """Calls and bytes over the groups of replicas of a shard: all ranks, or pairs across 2x2."""
    names = ("allreduce",)
    chosen = [counts for (name, _), counts in sent.items() if name in names]
    return sum(calls for calls, _ in chosen), sum(num_bytes for _, num_bytes in chosen)


def _text(sent: Sent) -> str:
    return "; ".join(
        f"{name} over {size}: {calls}x {num_bytes}"
        for (name, size), (calls, num_bytes) in sorted(sent.items())
    )


@pytest.mark.parametrize("row", LAYOUTS)
def test_msam_sends_no_more_between_shard_groups_than_vanilla(row: str, on_ranks: OnRanks) -> None:
    if row == "replicated":
        add_row(_TITLE, "", "", "sent")
    sent: dict[str, Sent] = {}
    for name, objective in _ALGORITHMS.items():
        config = settings(**objective, precision="float32", **LAYOUTS[row].sharding)
        first, *others = on_ranks(4, _sent, config)
        assert all(other.keys() == first.keys() for other in others)
        sent[name] = first
        add_row(_TITLE, row, name, _text(first))
    if row in ("FSDP", "ZeRO-3"):
        return  # one shard group: nothing goes between groups
    vanilla, sam, msam = (_between_groups(sent[name]) for name in _ALGORITHMS)
    assert msam == vanilla
    gradient = vanilla[1]
    assert sam[1] - vanilla[1] == pytest.approx(gradient, rel=0.05)


def _deepspeed_alone(num_accumulated: int) -> Sent:
    """Plain DeepSpeed, ZeRO-2, with ordinary accumulation."""
    import deepspeed
    from engine_models import build_model

    from msam_scale.sharding.zero import private_api

    private_api.prepare_process()
    deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False, verbose=False)
    model = build_model("dropout_vit")
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": num_accumulated,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
        },
        dist_init_required=False,
    )
    collectives = Collectives()
    for step in range(2):
        with collectives if step else Collectives():
            for number in range(num_accumulated):
                images, labels = mini_batch(number, dtype=torch.float32)
                engine.backward(cross_entropy(engine, (images[:2], labels[:2])))
                engine.step()
    return collectives.sent()


def test_deepspeeds_own_accumulation_sends_more(on_ranks: OnRanks) -> None:
    """ZeRO-2 reduces every chunk; the engine reduces a step's sum."""
    chunks = 4
    config = settings(
        micro_batches=4,
        chunk=2,
        precision="float32",
        strategy="zero2",
    )
    ours = _between_groups(on_ranks(4, _sent, config)[0])[1]
    theirs = _between_groups(on_ranks(4, _deepspeed_alone, chunks)[0])[1]
    add_row(_TITLE, "ZeRO-2", "mSAM, 4 chunks", f"all-reduced: {ours}")
    add_row(_TITLE, "DeepSpeed ZeRO-2", "4 chunks", f"all-reduced: {theirs}")
    assert theirs > 2 * ours
