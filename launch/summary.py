"""What a run says when it is over."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from msam_scale.training import Outcome


def closing_words(outcome: Outcome, *, config: str) -> str:
    """Where the results are, how to look at them, what to try next."""
    lines = []
    if not outcome.num_steps_now:
        lines.append(f"Nothing left to train: {outcome.folder} is complete.")
    if outcome.evaluation is not None:
        evaluation = outcome.evaluation
        lines.append(
            f"Validation accuracy {evaluation.accuracy:.2%} (loss {evaluation.loss:.4f}, "
            f"{evaluation.samples} samples) after {outcome.num_steps} steps."
        )
    name = outcome.folder.name
    lines += [
        f"Results:      {outcome.folder} (config.yaml, metrics.jsonl, checkpoints)",
        f"TensorBoard:  {_command('tensorboard')} --logdir {outcome.folder.parent}",
        f"Curves:       {_command('msam-scale')} report {outcome.folder} --out curves.png",
        f"Try next:     {_command('msam-scale')} train {config} objective.algorithm=vanilla "
        f"run.name={name}-vanilla",
    ]
    return "\n".join(lines)


def _command(name: str) -> str:
    """How to call a command of this environment: by name where it is active, else by path."""
    if shutil.which(name) is not None:
        return name
    # Not resolved: the interpreter of a virtual environment is a link out of it.
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
