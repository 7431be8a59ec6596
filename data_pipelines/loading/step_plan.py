"""Which steps a loader goes through, and how it goes on where another one stopped."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.index import SampleIndex
from data_pipelines.loading.items import Item
from data_pipelines.loading.schedule import MiniBatchSchedule
from data_pipelines.loading.state import (
    STATE_VERSION,
    BadSampleState,
    LoaderState,
    step_to_continue_at,
)

_NUM_NEXT_SAMPLES = 8


class StepPlan:
    """The items of consecutive steps of a schedule.

    Attributes:
        schedule: Gives the items of a step.
        steps: Counted over all epochs.
    """

    def __init__(
        self, index: SampleIndex, *, schedule: MiniBatchSchedule, first_step: int, num_steps: int
    ) -> None:
        """Checks the range of steps.

        Raises:
            UserError: A number is negative.
        """
        if first_step < 0 or num_steps < 0:
            raise UserError(f"first_step {first_step} and num_steps {num_steps} cannot be negative")
        self._index = index
        self.schedule = schedule
        self.steps = range(first_step, first_step + num_steps)

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.steps) * len(self.schedule.positions)

    def __iter__(self) -> Iterator[Item]:
        """Yields the items in order."""
        for step in self.steps:
            yield from self.schedule.items(step)

    def state(
        self, steps_done: int, *, bad_samples: Sequence[Mapping[str, Any]] = ()
    ) -> LoaderState:
        """Returns what a checkpoint needs to go on after so many steps, over all epochs."""
        return LoaderState(
            version=STATE_VERSION,
            seed=self.schedule.seed,
            epoch=steps_done // self.schedule.steps_per_epoch,
            step=steps_done,
            batch_size=self.schedule.batch_size,
            micro_batches=self.schedule.micro_batches,
            order=self.schedule.order.identity,
            fingerprint=self._index.fingerprint,
            next_samples=self._next_samples(steps_done),
            bad_samples=[BadSampleState(**bad) for bad in bad_samples],
        )

    def go_on(self, state: Mapping[str, Any], *, allows_new_partition: bool = False) -> LoaderState:
        """Goes on where a saved state says; the last step stays the one it was.

        Args:
            state: Of this or another loader, on any number of ranks and workers.
            allows_new_partition: Whether micro-batches may change within an epoch.

        Returns:
            The state, read.

        Raises:
            UserError: The state is of other data or another seed, or the loader would not go on
                with the samples that come next.
        """
        saved = LoaderState.of(state)
        step = step_to_continue_at(
            saved,
            self.state(saved.step),
            num_samples=self._index.num_samples,
            allows_new_partition=allows_new_partition,
        )
        is_same_order = (saved.order, saved.batch_size) == (
            self.schedule.order.identity,
            self.schedule.batch_size,
        )
        if is_same_order and self._next_samples(step) != saved.next_samples:
            raise UserError(
                f"loader state: the samples after step {saved.step} are not those of the program "
                "that saved it; use the version that did"
            )
        stop = self.steps.stop
        if step > stop:
            raise UserError(
                f"loader state: {step} steps are done, but this loader ends after {stop}"
            )
        self.steps = range(step, stop)
        return saved

    def _next_samples(self, step: int) -> list[int]:
        first: list[int] = self.schedule.mini_batch(step)[:_NUM_NEXT_SAMPLES].tolist()
        return first
