"""Every metric of a run: its name in metrics.jsonl, its place in TensorBoard, and what it means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure of a metric line.

    Attributes:
        tag: where TensorBoard shows it; `{split}` becomes `train` or `val`.
        meaning: what it is, with its unit.
    """

    tag: str
    meaning: str


METRICS: dict[str, Metric] = {
    "loss": Metric(
        "loss/{split}",
        "train: mean loss of the mini-batch at w, with label smoothing; val: mean cross-entropy",
    ),
    "accuracy": Metric("accuracy/{split}", "fraction of samples classified rightly, 0 … 1"),
    "f1": Metric("f1/{split}", "F1 score of class 1, of two classes, 0 … 1"),
    "matthews_correlation": Metric(
        "matthews_correlation/{split}", "Matthews correlation coefficient, -1 … 1"
    ),
    "ema_loss": Metric("ema_loss/{split}", "`loss` of the averaged weights (`training.ema`)"),
    "ema_accuracy": Metric("ema_accuracy/{split}", "`accuracy` of the averaged weights"),
    "ema_f1": Metric("ema_f1/{split}", "`f1` of the averaged weights"),
    "ema_matthews_correlation": Metric(
        "ema_matthews_correlation/{split}", "`matthews_correlation` of the averaged weights"
    ),
    "samples": Metric("samples/{split}", "samples evaluated"),
    "sharpness": Metric(
        "sharpness/{split}", "λ_max, the largest eigenvalue of the training loss's Hessian"
    ),
    "sharpness_error": Metric(
        "sharpness_error/{split}", "relative residual of λ_max, or its products' error if larger"
    ),
    "lr": Metric("optimizer/learning_rate", "learning rate of the step"),
    "grad_norm": Metric("norm/gradient", "L2 norm of the averaged gradient before clipping"),
    "ascent_norm": Metric("norm/ascent", "mean L2 norm of the micro-batches' ascent gradients"),
    "perturbation_fidelity": Metric(
        "norm/perturbation_fidelity",
        "part of the perturbation that the computing number format keeps; 1: all of it",
    ),
    "skipped_steps": Metric(
        "steps/skipped", "steps left out so far: a loss or gradient was not finite"
    ),
    "rollbacks": Metric("steps/rollbacks", "times so far that the run went back to a checkpoint"),
    "data_offset": Metric("steps/data_offset", "mini-batches of the data passed over so far"),
    "loss_spikes": Metric("loss/spikes", "reported losses so far that were spikes"),
    "samples_per_second": Metric("speed/samples_per_second", "samples trained, over all ranks"),
    "step_milliseconds": Metric("speed/step_milliseconds", "mean wall time of an optimizer step"),
    "mfu": Metric(
        "speed/model_flops_utilisation",
        "floating-point operations of all passes over the devices' peak, 0 … 1",
    ),
    "peak_memory_gib": Metric("memory/peak_gib", "peak memory of the first rank, GiB"),
}
