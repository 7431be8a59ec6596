"""What a run says when it is over."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from msam_scale.config import Config
from msam_scale.training import Outcome
from msam_scale.training.evaluation import Evaluation


def closing_words(
    outcome: Outcome, *, config: Config, source: str, overrides: Sequence[str], num_ranks: int
) -> str:
    """Where the results are, how to look at them, what to try next.

    Args:
        outcome: of the run.
        config: what ran.
        source: the config's file.
        overrides: settings of the command line.
        num_ranks: W.
    """
    lines = []
    if not outcome.num_steps_now:
        lines.append(f"Nothing left to train: {outcome.folder} is complete.")
    if outcome.evaluation is not None:
        evaluation = outcome.evaluation
        lines.append(
            f"Validation {_metrics(evaluation)} (loss {evaluation.loss:.4f}, "
            f"{evaluation.samples} samples) after {outcome.num_steps} steps."
        )
    if outcome.averaged_evaluation is not None:
        evaluation = outcome.averaged_evaluation
        lines.append(f"Averaged weights: {_metrics(evaluation)} (loss {evaluation.loss:.4f}).")
    lines.append(f"Results:      {outcome.folder}")
    if config.monitor.tensorboard:
        lines.append(
            f"TensorBoard:  {_call('tensorboard', '--logdir', str(outcome.folder.parent))}"
        )
    if config.monitor.jsonl:
        report = _call("msam-scale", "report", str(outcome.folder), "--out", "curves.png")
        lines.append(f"Curves:       {report}")
    if config.objective.algorithm != "vanilla":
        given = [one for one in overrides if not one.startswith(("run.name=", "objective."))]
        given += [f"run.name={outcome.folder.name}-vanilla", "objective.algorithm=vanilla"]
        ranks = ["--nproc", str(num_ranks)] if num_ranks > 1 else []
        lines.append(f"Try next:     {_call('msam-scale', 'train', source, *ranks, *given)}")
    return "\n".join(lines)


def stopping_words(outcome: Outcome, *, config: Config) -> str:
    """What stopped a run that is not complete, where it is saved, and how it goes on.

    Args:
        outcome: of the run.
        config: what ran.
    """
    if outcome.checkpoint is None:
        return f"stopped by {outcome.stopped_by} before the first step; start again to begin"
    # With another value a new start would not find this checkpoint.
    given = "" if config.checkpoint.resume == "auto" else " with checkpoint.resume=auto"
    return (
        f"stopped by {outcome.stopped_by} after step {outcome.num_steps} of "
        f"{outcome.num_steps_planned}, saved in {outcome.checkpoint}; start again{given} to go on"
    )


def _metrics(evaluation: Evaluation) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.2%}" for name, value in evaluation.metrics.items()
    )


def _call(name: str, *words: str) -> str:
    """How to call a command of this environment: by name where it is active, else by path."""
    if shutil.which(name) is None:
        # Not resolved: the interpreter of a virtual environment is a link out of it.
        path = Path(sys.executable).parent / name
        name = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return shlex.join([name, *words])
