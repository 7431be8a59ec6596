"""What is measured between two steps: the validation data, and sharpness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msam_scale.engine import Engine
from msam_scale.flatness.during_training import training_sharpness
from msam_scale.supervision.supervision import Supervision
from msam_scale.training.evaluation import Evaluation, Evaluator
from msam_scale.training.prepare import PreparedRun

_EVALUATION, _SHARPNESS = "evaluation", "sharpness"


class Report(Protocol):
    """Takes the figures of a split, after the last step done."""

    def __call__(self, split: str, **figures: float | int) -> None:
        """Reports."""


class Measurements:
    """Measures when it is time to. What a stop cuts off stays due, and is in the checkpoint.

    Args:
        engine: whose model it is.
        prepared: the run.
        supervision: is asked on the way whether all ranks stop.
        report: takes the figures.
        due: what an earlier start has left.

    Attributes:
        due: after the last step done, in order.
        evaluation: the last one, of the weights.
        averaged_evaluation: the last one of their average, where there is one.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        prepared: PreparedRun,
        supervision: Supervision,
        report: Report,
        due: Sequence[str],
    ) -> None:
        self.due = list(due)
        self.evaluation: Evaluation | None = None
        self.averaged_evaluation: Evaluation | None = None
        self._engine, self._prepared = engine, prepared
        val = prepared.data.val
        self._evaluator = None if val is None else Evaluator(engine, prepared.data)
        self._supervision, self._report = supervision, report
        self._evaluated_step: int | None = None
        config = prepared.config
        self._eval_every = config.training.eval_every or prepared.steps_per_epoch
        self._sharpness_every = (config.monitor.sharpness_every or 0) * prepared.steps_per_epoch

    def step_done(self, step: int) -> None:
        """Sees what is due after a step."""
        self.due = []
        is_last = step == self._prepared.num_steps
        if self._evaluator is not None and (step % self._eval_every == 0 or is_last):
            self.due.append(_EVALUATION)
        if self._sharpness_every and step % self._sharpness_every == 0:
            self.due.append(_SHARPNESS)

    def catch_up(self) -> None:
        """Measures and reports what is due. Collective.

        Raises:
            StopAgreedError: all ranks stop; the measurement that was cut off is due.
        """
        while self.due:
            if self.due[0] == _EVALUATION:
                self._evaluate()
                self._report_evaluation()
            else:
                self._measure_sharpness()
            del self.due[0]

    def evaluate_last(self) -> None:
        """Evaluates the final weights, unless that is done; an earlier start has reported it."""
        is_done = self._evaluated_step == self._engine.num_steps_done
        if self._evaluator is not None and not is_done:
            self._evaluate()

    def close(self) -> None:
        """Ends the loader processes of the validation data."""
        if self._evaluator is not None:
            self._evaluator.close()

    def _evaluate(self) -> None:
        assert self._evaluator is not None, "only a run with validation data has some due"
        goes_on = self._goes_on_with(_EVALUATION)
        self.evaluation = self._evaluator.evaluate(before_each_batch=goes_on)
        if self._engine.average is not None:
            with self._engine.averaged_weights():
                self.averaged_evaluation = self._evaluator.evaluate(before_each_batch=goes_on)
        self._evaluated_step = self._engine.num_steps_done

    def _report_evaluation(self) -> None:
        assert self.evaluation is not None
        averaged: dict[str, float] = {}
        if self.averaged_evaluation is not None:
            averaged = self.averaged_evaluation.figures(prefix="ema_")
        figures = self.evaluation.figures()
        self._report("val", **figures, **averaged, samples=self.evaluation.samples)

    def _measure_sharpness(self) -> None:
        found, error = training_sharpness(
            self._engine, self._prepared.data, before_each_pass=self._goes_on_with(_SHARPNESS)
        )
        self._report("train", sharpness=found, sharpness_error=error)

    def _goes_on_with(self, phase: str) -> Callable[[], None]:
        """For a measurement to call on its way, equally often on all ranks."""

        def goes_on() -> None:
            self._supervision.beat(phase)
            self._supervision.check()

        return goes_on
