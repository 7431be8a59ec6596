"""How far a run is, from its folder alone."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from data_pipelines import open_split
from data_pipelines.index import SampleIndex
from msam_scale.checkpoint import Progress
from msam_scale.config import load_config
from msam_scale.monitoring.metric_lines import read_metric_lines
from msam_scale.reproduction.cells import Cell
from msam_scale.training.run_folder import RunFolder

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        num_steps: optimizer steps of the whole run.
        num_steps_saved: of the newest checkpoint.
        is_finished: all is done, saved and reported.
    """

    num_steps: int
    num_steps_saved: int
    is_finished: bool


def look_at(cell: Cell) -> RunState:
    """How far a cell's run is; writes nothing.

    Raises:
        UserError: its folder holds a run of other settings or data, or is damaged.
    """
    config = load_config(
        cell.config, overrides=cell.overrides, world_size=cell.num_ranks, for_training=True
    )
    index = _index(str(config.data.train))
    steps_per_epoch = index.num_samples // config.batch.size
    num_steps = config.training.num_steps(steps_per_epoch) or 0
    folder = RunFolder.find(config, fingerprint=index.fingerprint, steps_per_epoch=steps_per_epoch)
    if folder.resume_from is None:
        return RunState(num_steps, num_steps_saved=0, is_finished=False)
    saved = Progress.read(folder.resume_from).step
    last_split = "train" if config.data.val is None else "val"
    reported = {line["step"] for line in _lines(cell) if line["split"] == last_split}
    return RunState(
        num_steps,
        num_steps_saved=saved,
        is_finished=saved == num_steps and num_steps in reported,
    )


def wait_until_free(
    cell: Cell, *, say: Callable[[str], None], is_stopped: Callable[[], bool]
) -> None:
    """Waits while another process trains in the cell's folder, such as one of an earlier start.

    Args:
        cell: whose run it is.
        say: is told that there is a wait.
        is_stopped: whether to give up.
    """
    path = cell.run / ".lock"
    if not path.is_file():
        return
    has_said = False
    with path.open("ab") as lock:
        while not is_stopped():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not has_said:
                    say(f"{cell.run.name}: waits for the process that is training there")
                has_said = True
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            else:
                return


def _lines(cell: Cell) -> list[dict[str, object]]:
    path = cell.run / "metrics.jsonl"
    return read_metric_lines(path) if path.is_file() else []


@lru_cache(maxsize=64)
def _index(location: str) -> SampleIndex:
    return open_split(location).index
