"""This process's place among the ranks: environment, device and process groups."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_timeout

from data_pipelines.errors import UserError
from msam_scale.fresh_store import fresh_store

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run as seen by one of them.

    Attributes:
        rank: this process's number, 0 ≤ rank < size.
        size: W.
        device: where this rank computes.
        own_group: of all ranks, where it is not the default one.
    """

    rank: int
    size: int
    device: torch.device
    own_group: dist.ProcessGroup | None = None

    @property
    def world(self) -> dist.ProcessGroup | None:
        """The group of all ranks, None for a single process."""
        if self.size == 1:
            return None
        return self.own_group or dist.group.WORLD

    def apart(self, purpose: str) -> Ranks:
        """The same ranks with a `gloo` group for one purpose, such as a thread of its own.

        Collective, the first time for each purpose.
        """
        if self.size == 1:
            return self
        key = dist.group.WORLD, purpose
        if key not in _subgroups:
            group = dist.new_group(backend="gloo", timeout=timeout_of_groups())
            assert isinstance(group, dist.ProcessGroup), "all ranks are in it"
            _subgroups[key] = group
        return replace(self, own_group=_subgroups[key])

    def gathered(self, value: T) -> list[T]:
        """What every rank has given, by rank, on all ranks. Collective."""
        values: list[Any] = [value]
        if self.world is not None:
            values = [None] * self.size
            dist.all_gather_object(values, value, group=self.world)
        return values

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    def on_first(self, work: Callable[[], None]) -> None:
        """Runs `work` on rank 0; its failure is raised on all ranks, so that none waits for ever.

        Raises:
            UserError: the work raised one, or the file system refused it.
        """
        outcome: list[str | None] = [None]
        if self.is_first:
            try:
                work()
            except (OSError, SafetensorError, UserError) as error:
                outcome = [str(error)]
        if self.world is not None:
            dist.broadcast_object_list(outcome, src=0, group=self.world)
        if outcome[0] is not None:
            raise UserError(outcome[0])

    def group_of(self, size: int) -> dist.ProcessGroup | None:
        """The group of `size` consecutive ranks that holds this one; None for this rank alone.

        Collective: all ranks must call it with the same size.
        """
        return None if size == 1 else self.process_group_of(size)

    def process_group_of(self, size: int) -> dist.ProcessGroup:
        """As `group_of`, for libraries that need a process group even for a single rank."""
        if not dist.is_initialized():
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(_backend(self.device), store=store, rank=0, world_size=1)
        if size == self.size:
            assert dist.group.WORLD is not None
            return dist.group.WORLD
        starts = range(0, self.size, size)
        return _subgroup([list(range(start, start + size)) for start in starts])

    def replicas_of(self, size: int, *, within: int) -> dist.ProcessGroup | None:
        """The ranks at this one's place in their groups of `size`, among `within` consecutive ones.

        They hold the same shard where `size` ranks share a copy of the parameters. None for this
        rank alone. Collective: all ranks must call it with the same numbers.
        """
        if size == within:
            return None
        if size == 1:
            return self.group_of(within)
        starts = range(0, self.size, within)
        return _subgroup(
            [
                list(range(start + place, start + within, size))
                for start in starts
                for place in range(size)
            ]
        )


# Groups keep threads and connections, so equal ones are made once. The key holds the group of all
# ranks, which a program may leave and join anew.
_subgroups: dict[tuple[object, str], dist.ProcessGroup] = {}


# What `join` was told or has made: the timeout of all groups, and the store that the ranks met at.
_joined: dict[str, Any] = {}


def shared_store() -> Store | None:
    """The store at which the ranks have met, where `join` has made their group."""
    store: Store | None = _joined.get("store")
    return store


def timeout_of_groups() -> timedelta | None:
    """The timeout that `join` was called with, which torch gives no group that is made later."""
    timeout: timedelta | None = _joined.get("timeout")
    return timeout


def _subgroup(ranks: list[list[int]]) -> dist.ProcessGroup:
    key = dist.group.WORLD, str(ranks)
    if key not in _subgroups:
        group, _ = dist.new_subgroups_by_enumeration(ranks, timeout=timeout_of_groups())
        assert isinstance(group, dist.ProcessGroup), "this rank is in one of the groups"
        _subgroups[key] = group
    return _subgroups[key]


def join(*, timeout: timedelta | None = None) -> Ranks:
    """Joins the process group that the launcher's environment describes, or stays alone.

    `deepspeed`, `torchrun` and `msam-scale train` set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT. A group that the caller has initialised is used as it is.

    Args:
        timeout: after which a collective that a rank does not come to fails, in this group (but for
            the caller's own) and in all that are made of its ranks later; by default PyTorch's.

    Raises:
        UserError: an environment variable is missing or no number.
    """
    device = _local_device()
    if timeout is not None:
        _joined["timeout"] = timeout
    if not dist.is_initialized():
        if _environment_number("WORLD_SIZE", default=1) == 1:
            return Ranks(rank=0, size=1, device=device)
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise UserError(
                    f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {name} is not set; start with "
                    "`deepspeed`, `torchrun` or `msam-scale train --nproc`"
                )
        device_id = device if device.type == "cuda" else None
        limit: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        store, rank, size = next(rendezvous("env://", **limit))
        if "TORCHELASTIC_USE_AGENT_STORE" in os.environ:
            limit_of_store = timeout or default_pg_timeout
            store = fresh_store(store, rank=rank, size=size, timeout=limit_of_store)
        dist.init_process_group(
            _backend(device),
            store=PrefixStore("msam_scale/group", store),
            rank=rank,
            world_size=size,
            device_id=device_id,
            **limit,
        )
        _joined["store"] = store
    return Ranks(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


def leave() -> None:
    """Leaves the process group, if there is one, when its last collective is over.

    Engines that use the group must be out of reach. Its threads end with the last reference to it;
    one that still runs when the interpreter ends aborts the process.
    """
    _subgroups.clear()
    _joined.clear()
    if dist.is_initialized():
        gc.collect()  # an engine and its loss function may refer to each other
        # DeepSpeed's engines ask for their rank as they end, so they are gone by now.
        dist.destroy_process_group()
        gc.collect()


def _backend(device: torch.device) -> str:
    """Offloaded shards lie in host memory, and are gathered there for a checkpoint."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _local_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = _environment_number("LOCAL_RANK", default=torch.cuda.current_device())
    if index >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK is {index} but this machine shows {torch.cuda.device_count()} GPUs; "
            "start at most one process a GPU"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _environment_number(name: str, *, default: int) -> int:
    value = os.environ.get(name)
    if value is None:
        return default
    if not value.isdigit():
        raise UserError(f"the environment variable {name} is {value!r}; it must be a number")
    return int(value)
