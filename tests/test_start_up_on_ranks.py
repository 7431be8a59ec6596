"""A step starts no process."""

from __future__ import annotations

import sys
from typing import Any

from engine_models import mini_batch
from engine_runs import _DTYPES, Run, engine_for, own_part, settings
from layouts import LAYOUTS
from rank_pool import OnRanks

_started: list[str] = []
_watches = False


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
        _started.append(f"{event}: {arguments[:2]}")


def _started_by_steps(config: dict[str, Any]) -> list[str]:
    """The processes that two steps start on this rank."""
    global _watches
    if not _watches:  # a process cannot take an audit hook back
        sys.addaudithook(_note)
        _watches = True
    engine = engine_for(Run(config, model="odd, all of it used"))
    _started.clear()
    for step in range(2):
        batch = mini_batch(step, dtype=_DTYPES[config["precision"]])
        engine.train_step(own_part(engine, batch))
    return list(_started)


def test_steps_of_zero_3_start_no_process(on_ranks: OnRanks) -> None:
    """Left alone, DeepSpeed asks `numactl` for the number of devices at each reduction."""
    layout = LAYOUTS["ZeRO-3"]
    config = settings(micro_batches=4, precision=layout.precision, **layout.sharding)
    assert on_ranks(2, _started_by_steps, config) == [[], []]
