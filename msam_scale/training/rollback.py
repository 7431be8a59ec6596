"""Back to the last checkpoint after a bad step, and on with the data behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msam_scale.checkpoint import step_of
from msam_scale.config import Config
from msam_scale.engine import Engine
from msam_scale.errors import NonFiniteError, NonFiniteStepError


@dataclass(frozen=True)
class Return:
    """Where a rollback has led.

    Attributes:
        passed_over: mini-batches of the data, counted from 0, that nobody trains on any more.
        extra: what the run had put into the checkpoint.
    """

    passed_over: range
    extra: Mapping[str, Any]


class Rollbacks:
    """Which data a run passes over: step s trains on mini-batch s + `data_offset` of the data.

    The place to go back to follows from the number of the bad step, not from when it was noticed:
    the last checkpoint at a multiple of `checkpoint.every`. One that a run saved because it had to
    stop is passed by, so that the result is that of a run which was not stopped.

    Args:
        config: the run's.
        checkpoints: the run's own, the one that this start goes on from first.
        step: steps done so far.
        extra: what the run had put into that checkpoint; empty without one.

    Attributes:
        is_on: whether a bad step is answered by going back.
        data_offset: mini-batches passed over so far.
        total: rollbacks so far.
    """

    def __init__(
        self,
        config: Config,
        *,
        checkpoints: Sequence[Path],
        step: int,
        extra: Mapping[str, Any],
    ) -> None:
        self.is_on = config.objective.non_finite == "rollback"
        self._limit = config.objective.max_rollbacks
        self._every = config.checkpoint.every or 0
        state = extra.get("rollbacks", {"total": 0, "in_a_row": 0})
        self.data_offset: int = extra.get("data_offset", 0)
        self.total: int = state["total"]
        self._in_a_row: int = state["in_a_row"]
        self._checkpoint = self._last_checkpoint(checkpoints, step=step) if self.is_on else None

    @property
    def lacks_checkpoint(self) -> bool:
        """Whether one has to be saved before the first step, to have one to go back to."""
        return self.is_on and self._checkpoint is None

    def state(self, *, step: int) -> dict[str, Any]:
        """What the checkpoint after so many steps keeps in its `extra`."""
        in_a_row = 0 if self._is_regular(step) else self._in_a_row
        return {
            "data_offset": self.data_offset,
            "rollbacks": {"total": self.total, "in_a_row": in_a_row},
        }

    def saved(self, checkpoint: Path, step: int) -> None:
        """A checkpoint was saved after so many steps."""
        if self._is_regular(step):
            self._checkpoint, self._in_a_row = checkpoint, 0
        elif self._checkpoint is None:
            self._checkpoint = checkpoint

    def go_back(self, engine: Engine, bad: NonFiniteStepError) -> Return:
        """Puts the engine where the checkpoint before the bad step left it. Collective.

        Raises:
            NonFiniteError: it went back too often since that checkpoint.
            UserError: the checkpoint is damaged or gone.
        """
        assert self._checkpoint is not None, "saved at the start at the latest"
        if self._in_a_row >= self._limit:
            raise NonFiniteError(
                f"step {bad.step + 1}: {bad.fault}, and the run has gone back to "
                f"{self._checkpoint} as often as objective.max_rollbacks: {self._limit} allows; it "
                "may not be the data alone: a lower optimizer.lr, a longer schedule.warmup or "
                "optimizer.clip_norm may help"
            )
        position = bad.step + self.data_offset
        extra = engine.load_checkpoint(self._checkpoint)
        done = engine.num_steps_done
        passed_over = range(done + self.data_offset, position + 1)
        self.data_offset = position + 1 - done
        self.total += 1
        self._in_a_row += 1
        return Return(passed_over=passed_over, extra=extra)

    def _is_regular(self, step: int) -> bool:
        return bool(self._every) and step % self._every == 0

    def _last_checkpoint(self, checkpoints: Sequence[Path], *, step: int) -> Path | None:
        """The one that a start after so many steps would go back to."""
        last = step // self._every * self._every
        regular = [one for one in checkpoints if step_of(one) == last]
        return next(iter([*regular, *checkpoints]), None)
