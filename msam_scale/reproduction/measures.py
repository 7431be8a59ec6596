"""What an experiment measures of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from data_pipelines.errors import UserError
from msam_scale.monitoring.metric_lines import read_metric_lines

# Far more than λ_max of a trained network takes.
_MAX_PRODUCTS = 400


class Measure(Protocol):
    """One figure of each run.

    Attributes:
        label: with its unit, for tables and pictures.
        num_decimals: that are shown.
        runs_alone: whether other runs at the same time would falsify it.
        relative_to: the column whose value, for the same row and seed, it is divided by.
    """

    label: str
    num_decimals: int
    runs_alone: bool
    relative_to: str | None

    def follow_up(self, run: Path) -> tuple[str, ...] | None:
        """The words of an `msam-scale` command that measures the finished run.

        It prints one JSON object, which is kept and handed to `value`. None: the run's own figures
        are enough.
        """

    def value(self, run: Path, *, metric: str, found: Mapping[str, Any]) -> float:
        """The figure.

        Args:
            run: folder of a finished run.
            metric: the row's metric.
            found: what the follow-up printed; empty without one.

        Raises:
            UserError: the run does not have it.
        """


class ValidationMetric:
    """The row's metric on the validation data after the last step, in percent."""

    label = "%"
    num_decimals = 2
    runs_alone = False
    relative_to: str | None = None

    def follow_up(self, run: Path) -> None:
        """Nothing: the training has evaluated."""

    def value(self, run: Path, *, metric: str, found: Mapping[str, Any]) -> float:
        """See `Measure.value`."""
        lines = [line for line in read_metric_lines(run / "metrics.jsonl") if metric in line]
        lines = [line for line in lines if line["split"] == "val" and line[metric] is not None]
        if not lines:
            raise UserError(f"{run / 'metrics.jsonl'}: no validation line has {metric!r}")
        return 100 * float(lines[-1][metric])


class LargestEigenvalue:
    """λ_max of the Hessian of the training loss over the full training set."""

    label = "λ_max"
    num_decimals = 2
    runs_alone = False
    relative_to: str | None = None

    def follow_up(self, run: Path) -> tuple[str, ...]:
        """See `Measure.follow_up`."""
        return ("sharpness", str(run), "--json", "--iterations", str(_MAX_PRODUCTS))

    def value(self, run: Path, *, metric: str, found: Mapping[str, Any]) -> float:
        """See `Measure.value`; one that has not converged is not taken for an eigenvalue."""
        if not found["converged"]:
            raise UserError(
                f"{run}: λ_max has not converged within {_MAX_PRODUCTS} products; measurements/ in "
                "the run's folder has what was found"
            )
        return float(found["lambda_max"])


class StepTime:
    """Wall time of an optimizer step, as a multiple of vanilla training's.

    Each seed is a round in which all columns are timed one after the other, so that what slows the
    machine down for a while meets all of them.
    """

    label = "time of a step, vanilla = 1"
    num_decimals = 2
    runs_alone = True
    relative_to: str | None = "vanilla"

    def follow_up(self, run: Path) -> None:
        """Nothing: the training times its steps."""

    def value(self, run: Path, *, metric: str, found: Mapping[str, Any]) -> float:
        """Milliseconds: the median over the reports of a run, of which the first warms up."""
        lines = read_metric_lines(run / "metrics.jsonl")
        times = [line["step_milliseconds"] for line in lines if "step_milliseconds" in line]
        if len(times) < 2:
            raise UserError(
                f"{run / 'metrics.jsonl'}: {len(times)} timed reports; a new run of 2 or more "
                "reports (monitor.every) is needed: remove the folder"
            )
        return float(median(times[1:]))


MEASURES: dict[str, Measure] = {
    "metric": ValidationMetric(),
    "lambda_max": LargestEigenvalue(),
    "step_time": StepTime(),
}
