"""What really goes over the wire in one step, counted at the level of torch's operators."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import (
    Run,
    engine_for,
    own_part,
    relative_difference,
    settings,
    with_small_buckets,
)
from layouts import LAYOUTS
from rank_pool import OnRanks
from report import add_row
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from msam_scale.initialization import initialize

_TITLE = "Traffic of a step on 4 ranks: calls and bytes, of gradients and weights (float32)"
# Vanilla, SAM and mSAM, two steps each; the second ones are counted.
_PHASES = [{"until": 1 / 3, "algorithm": "vanilla"}, {"until": 2 / 3, "algorithm": "sam"}]
_ALGORITHMS = ("vanilla", "SAM", "mSAM, m=4")
# The groups of rank 0: all ranks, a shard group of two, and the replicas of a shard.
_ALL, _PAIR, _ACROSS = (0, 1, 2, 3), (0, 1), (0, 2)
# Norms, losses and overflow flags travel in tensors of a few numbers.
_FEW_BYTES = 80

Key = tuple[str, tuple[int, ...]]
Sent = dict[Key, tuple[int, int]]


class Collectives(TorchDispatchMode):
    """Notes each collective: its name, the ranks of its group, its bytes and its type."""

    def __init__(self, events: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events = events

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func.name().partition("::")[2].strip("_")
            tensors = args[0] if isinstance(args[0], list | tuple) else [args[0]]
            dtype = tensors[0].dtype if isinstance(tensors[0], torch.Tensor) else None
            self.events.append((name, _ranks_of_group(args), max(map(_bytes, args)), dtype))
        return func(*args, **(kwargs or {}))


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


# With replicated parameters: one reduction after the other, in order.


def _calls(configs: list[dict[str, Any]]) -> list[list[Any]]:
    """The collectives of the second step of each config, in order."""
    by_config = []
    for config in configs:
        engine = engine_for(Run(config))
        engine.train_step(own_part(engine, mini_batch(0, dtype=torch.float32)))
        events: list[Any] = []
        with Collectives(events):
            engine.train_step(own_part(engine, mini_batch(1, dtype=torch.float32)))
        by_config.append(events)
    return by_config


def test_msam_sends_what_vanilla_sends_and_sam_twice_the_gradients(on_ranks: OnRanks) -> None:
    objectives: list[dict[str, Any]] = [
        {"algorithm": "vanilla"},
        {"micro_batches": 4},
        {"micro_batches": 8, "chunk": 3},
        {"algorithm": "sam"},
        {"micro_batches": 2},
    ]
    configs = [settings(precision="float32", **objective) for objective in objectives]
    by_rank = on_ranks(4, with_small_buckets, _calls, configs)
    for calls in by_rank[0]:
        assert {name for name, *_ in calls} == {"allreduce"}
    for calls in by_rank[1:]:
        for own, first in zip(calls, by_rank[0], strict=True):
            assert [(call[2], call[3]) for call in own] == [(call[2], call[3]) for call in first]
    vanilla, msam, chunked, sam, fewer = by_rank[0]
    gradients = [call for call in vanilla if call[3] is torch.float32]
    assert len(gradients) > 5
    assert len(vanilla) == len(gradients) + 1, "the summary"
    assert msam == vanilla
    assert chunked == vanilla
    assert [call for call in sam if call[3] is torch.float32] == gradients * 2
    assert len(sam) == len(vanilla) + len(gradients)
    # Two micro-batches on four ranks: the ascent is summed over two, the descent over all.
    assert [call[1] for call in fewer if call[3] is torch.float32] == [
        *[_PAIR] * len(gradients),
        *[_ALL] * len(gradients),
    ]


def _launches_within_backward(algorithm: str) -> tuple[int, int]:
    events: list[Any] = []
    backward = torch.Tensor.backward

    def noted(tensor: torch.Tensor, *arguments: Any, **named: Any) -> None:
        backward(tensor, *arguments, **named)  # type: ignore[no-untyped-call]
        events.append(("returned",))

    micro_batches = 4 if algorithm == "msam" else None
    config = settings(algorithm=algorithm, micro_batches=micro_batches, precision="float32")
    engine = engine_for(Run(config, model="dropout_vit"))
    torch.Tensor.backward = noted  # type: ignore[method-assign, assignment]
    try:
        with Collectives(events):
            engine.train_step(own_part(engine, mini_batch(0, dtype=torch.float32)))
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    last = len(events) - 1 - events[::-1].index(("returned",))
    gradients = [index for index, event in enumerate(events) if event[-1] is torch.float32]
    return sum(index < last for index in gradients), len(gradients)


@pytest.mark.parametrize("algorithm", ["sam", "msam"])
def test_gradients_leave_while_the_backward_runs(algorithm: str, on_ranks: OnRanks) -> None:
    for within, all_launches in on_ranks(
        2, with_small_buckets, _launches_within_backward, algorithm
    ):
        assert all_launches > 10
        assert within >= all_launches - 1


class Branches(nn.Module):
    """One of two layers, chosen by the first sample: ranks differ in what goes unused."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(192, 5), nn.Linear(192, 5)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        chosen = int(images[0, 0, 0, 0] > 0)
        return self.layers[chosen](images.flatten(1))  # type: ignore[no-any-return]


def _train_branches() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    engine = initialize(
        Branches(), config=settings(micro_batches=4, chunk=2), loss_fn=cross_entropy
    )
    for step in range(6):
        images, labels = mini_batch(step)
        # Micro-batches 0 and 1 use one layer, 2 and 3 the other; each step the other way round.
        side = torch.ones(len(images), dtype=images.dtype)
        side[: len(images) // 2] = -1
        images[:, 0, 0, 0] = side * (-1) ** step
        engine.train_step(own_part(engine, (images, labels)))
    return engine.full_state_dict()


@pytest.mark.layouts
def test_ranks_may_leave_different_parameters_unused(on_ranks: OnRanks) -> None:
    """In buckets of a few hundred bytes, which leave in one order on all ranks."""
    expected = _train_branches()
    start = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    for state in on_ranks(2, with_small_buckets, _train_branches):
        assert relative_difference(state, expected=expected, start=start) < 1e-12


# Under the other strategies: within and between shard groups.


def _sent(row: str) -> list[Sent]:
    """What the second step of each algorithm sends: calls and bytes."""
    # Two samples a forward: each algorithm cuts a rank's eight samples into the same chunks.
    config = settings(micro_batches=4, chunk=2, precision="float32", **LAYOUTS[row].sharding)
    config["objective"]["phases"] = _PHASES
    config["training"] = {"steps": 2 * len(_ALGORITHMS)}
    engine = engine_for(Run(config, model="dropout_vit"))
    by_algorithm = []
    for step in range(2 * len(_ALGORITHMS)):
        events: list[Any] = []
        with Collectives(events):
            engine.train_step(own_part(engine, mini_batch(step, dtype=torch.float32)))
        if step % 2:
            by_algorithm.append(_counted(events))
    return by_algorithm


def _counted(events: list[Any]) -> Sent:
    calls: Counter[Key] = Counter()
    sizes: Counter[Key] = Counter()
    for name, ranks, num_bytes, _ in events:
        if num_bytes > _FEW_BYTES:
            calls[name, ranks] += 1
            sizes[name, ranks] += num_bytes
    return {key: (calls[key], sizes[key]) for key in calls}


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


@pytest.mark.parametrize("row", ["hybrid FSDP 2x2", "ZeRO-2", "hybrid ZeRO-3 2x2"])
def test_between_shard_groups_msam_sends_what_vanilla_sends(row: str, on_ranks: OnRanks) -> None:
    first, *others = on_ranks(4, _sent, row)
    for other in others:  # call as often, of their own groups
        for own, its in zip(other, first, strict=True):
            assert Counter((key[0], n) for key, (n, _) in own.items()) == Counter(
                (key[0], n) for key, (n, _) in its.items()
            )
    for name, sent in zip(_ALGORITHMS, first, strict=True):
        add_row(_TITLE, row, name, _text(sent))
    vanilla, sam, msam = first
    if "hybrid" in row:
        _check_within(row, vanilla, sam, msam)
    between = _ACROSS if "hybrid" in row else _ALL
    assert msam.keys() == vanilla.keys()
    assert _chosen(msam, over=between) == _chosen(vanilla, over=between)
    ((calls, num_bytes),) = _chosen(msam, over=between, collective="allreduce").values()
    ((sam_calls, sam_bytes),) = _chosen(sam, over=between, collective="allreduce").values()
    assert (calls, sam_calls) == (1, 2)
    # DeepSpeed reduces without the padding of the engine's buffers.
    assert sam_bytes == pytest.approx(2 * num_bytes, rel=0.05)


def _check_within(row: str, vanilla: Sent, sam: Sent, msam: Sent) -> None:
    """Gathers and scatters go with the forwards and backwards: twice those of vanilla."""
    # ZeRO-3 keeps small parameters gathered, and gathers them anew after each perturbation.
    scatters = "reduce_scatter" if "ZeRO" in row else ""
    expected = _times(2, _chosen(vanilla, over=_PAIR, collective=scatters))
    assert expected
    assert _chosen(sam, over=_PAIR, collective=scatters) == expected
    assert _chosen(msam, over=_PAIR, collective=scatters) == expected


def _deepspeed_alone(num_accumulated: int) -> Sent:
    """Plain DeepSpeed, ZeRO-2, with ordinary accumulation."""
    import deepspeed

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
    for _ in range(2):
        events: list[Any] = []
        with Collectives(events):
            for number in range(num_accumulated):
                images, labels = mini_batch(number, dtype=torch.float32)
                engine.backward(cross_entropy(engine, (images[:2], labels[:2])))
                engine.step()
    return _counted(events)


@pytest.mark.part("benchmarks")
def test_deepspeeds_own_accumulation_sends_more(on_ranks: OnRanks) -> None:
    """ZeRO-2 reduces every chunk; the engine reduces a step's sum."""
    chunks = 4
    ours = on_ranks(4, _sent, "ZeRO-2")[0][-1]
    theirs = on_ranks(4, _deepspeed_alone, chunks)[0]
    add_row(_TITLE, "DeepSpeed ZeRO-2", "vanilla, 4 chunks", _text(theirs))
    reductions = [_chosen(sent, over=_ALL, collective="allreduce") for sent in (ours, theirs)]
    assert reductions[1] == _times(chunks, reductions[0])
