"""What a run says when it is over."""

from __future__ import annotations

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
        f"TensorBoard:  tensorboard --logdir {outcome.folder.parent}",
        f"Curves:       msam-scale report {outcome.folder} --out curves.png",
        f"Try next:     msam-scale train {config} objective.algorithm=vanilla "
        f"run.name={name}-vanilla",
    ]
    return "\n".join(lines)
