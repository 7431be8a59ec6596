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
# Two samples a forward: each algorithm cuts a rank's eight samples into the same chunks.
_ALGORITHMS: dict[str, dict[str, Any]] = {
    "vanilla": {"algorithm": "vanilla", "chunk": 2},
    "SAM": {"algorithm": "sam", "chunk": 2},
    "mSAM, m=4": {"micro_batches": 4, "chunk": 2},
}
# The groups of rank 0: all ranks, a shard group of two, and the replicas of a shard.
_ALL, _PAIR, _ACROSS = (0, 1, 2, 3), (0, 1), (0, 2)
_SHARD_GROUPS = {
    "FSDP": _ALL,
    "ZeRO-3": _ALL,
    "hybrid FSDP 2x2": _PAIR,
    "hybrid ZeRO-3 2x2": _PAIR,
}

Key = tuple[str, tuple[int, ...]]
Sent = dict[Key, tuple[int, int]]


class Collectives(TorchDispatchMode):
    """Counts collectives by (name, ranks of the group): calls and bytes; small ones are left out.

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
                key = name, _ranks_of_group(args)
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


def _ranks_of_group(args: tuple[Any, ...]) -> tuple[int, ...]:
    for value in args:
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(value)))
    raise AssertionError("a collective without a group")


def _sent(config: dict[str, Any]) -> Sent:
    """What the second step sends."""
    engine = engine_for(Run(config, model="dropout_vit"))
    engine.train_step(own_part(engine, mini_batch(0, dtype=torch.float32)))
    with Collectives() as collectives:
        engine.train_step(own_part(engine, mini_batch(1, dtype=torch.float32)))
    return collectives.sent()


def _chosen(sent: Sent, *, over: tuple[int, ...], collective: str = "") -> Sent:
    return {
        (name, ranks): counts
        for (name, ranks), counts in sent.items()
        if ranks == over and collective in name
    }


def _times(factor: int, sent: Sent) -> Sent:
    return {key: (factor * calls, factor * size) for key, (calls, size) in sent.items()}


def _text(sent: Sent) -> str:
    return "; ".join(
        f"{name} over {'-'.join(map(str, ranks))}: {calls}x {num_bytes}"
        for (name, ranks), (calls, num_bytes) in sorted(sent.items())
    )


def _measured(row: str, on_ranks: OnRanks) -> list[Sent]:
    """What rank 0 sends in a step of each algorithm; the others call as often."""
    by_algorithm = []
    for name, objective in _ALGORITHMS.items():
        config = settings(**objective, precision="float32", **LAYOUTS[row].sharding)
        first, *others = on_ranks(4, _sent, config)
        for other in others:
            assert Counter(_calls_of(other)) == Counter(_calls_of(first))
        add_row(_TITLE, row, name, _text(first))
        by_algorithm.append(first)
    return by_algorithm


def _calls_of(sent: Sent) -> list[tuple[str, int, int]]:
    return [(name, len(ranks), calls) for (name, ranks), (calls, _) in sent.items()]


@pytest.mark.parametrize("row", LAYOUTS)
def test_between_shard_groups_msam_sends_what_vanilla_sends(row: str, on_ranks: OnRanks) -> None:
    if row == "replicated":
        add_row(_TITLE, "", "", "sent (collective over ranks: calls, bytes)")
    vanilla, sam, msam = _measured(row, on_ranks)
    shard_group = _SHARD_GROUPS.get(row)
    if shard_group is not None:
        _check_within(row, shard_group, vanilla, sam, msam)
    if shard_group == _ALL:
        assert all(key[1] == _ALL for key in msam), "there is no other group to send to"
        return
    between = _ALL if shard_group is None else _ACROSS
    assert msam.keys() == vanilla.keys()
    assert _chosen(msam, over=between) == _chosen(vanilla, over=between)
    ((calls, num_bytes),) = _chosen(msam, over=between, collective="allreduce").values()
    ((sam_calls, sam_bytes),) = _chosen(sam, over=between, collective="allreduce").values()
    assert (calls, sam_calls) == (1, 2)
    # DeepSpeed reduces without the padding of the engine's buffers.
    assert sam_bytes == pytest.approx(2 * num_bytes, rel=0.05)


def _check_within(
    row: str, shard_group: tuple[int, ...], vanilla: Sent, sam: Sent, msam: Sent
) -> None:
    """Gathers and scatters go with the forwards and backwards: twice those of vanilla."""
    # ZeRO-3 keeps small parameters gathered, and gathers them anew after each perturbation.
    scatters = "reduce_scatter" if "ZeRO" in row else ""
    expected = _times(2, _chosen(vanilla, over=shard_group, collective=scatters))
    assert expected
    assert _chosen(sam, over=shard_group, collective=scatters) == expected
    assert _chosen(msam, over=shard_group, collective=scatters) == expected


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
    ours = on_ranks(4, _sent, config)[0]
    theirs = on_ranks(4, _deepspeed_alone, chunks)[0]
    add_row(_TITLE, "DeepSpeed ZeRO-2", "vanilla, 4 chunks", _text(theirs))
    reductions = [_chosen(sent, over=_ALL, collective="allreduce") for sent in (ours, theirs)]
    assert reductions[1] == _times(chunks, reductions[0])
