"""A part of a store that no earlier start of the ranks has written to."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

_HELLO, _ANSWER, _TAKEN = "msam_scale/hello", "msam_scale/answer", "msam_scale/taken"
_SECONDS_BETWEEN_LOOKS = 0.02


def fresh_store(store: Store, *, rank: int, size: int, timeout: timedelta) -> Store:
    """Agrees with the other ranks on a prefix of this start alone. Collective.

    torchrun keeps one store for all restarts of its ranks (torch 2.14, c10d rendezvous), in which a
    restarted rank may find the address of a process that is gone. Nothing in the environment tells
    one start from another on every node: TORCHELASTIC_RESTART_COUNT differs between them. So rank 0
    answers a number that each rank draws anew, and what is left of earlier starts bears other ones.

    Args:
        store: of all ranks; old keys may be in it.
        rank: this rank.
        size: W.
        timeout: for ranks that do not come.

    Raises:
        RuntimeError: they did not.
    """
    if rank:
        number = uuid.uuid4().hex
        store.set(f"{_HELLO}/{rank}", number)
        name = store.get(f"{_ANSWER}/{number}").decode()
        store.set(f"{_TAKEN}/{name}/{rank}", "")
    else:
        name = uuid.uuid4().hex
        _answer(store, name=name, size=size, end=time.monotonic() + timeout.total_seconds())
    return PrefixStore(f"msam_scale/start/{name}", store)


def _answer(store: Store, *, name: str, size: int, end: float) -> None:
    """Until all have taken the name: a rank's number may be an old one at first."""
    waiting = set(range(1, size))
    while waiting:
        for rank in list(waiting):
            if store.check([f"{_TAKEN}/{name}/{rank}"]):
                waiting.remove(rank)
            elif store.check([f"{_HELLO}/{rank}"]):
                number = store.get(f"{_HELLO}/{rank}").decode()
                store.set(f"{_ANSWER}/{number}", name)
        if time.monotonic() > end:
            raise RuntimeError(f"timed out waiting for ranks {sorted(waiting)} to join")
        if waiting:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
