"""Training curves of runs, from their metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import UserError
from msam_scale.monitoring.metric_lines import read_metric_lines

_PANELS = (
    ("train", "loss", "training loss"),
    ("val", "accuracy", "validation accuracy"),
    ("train", "ascent_norm", "mean ascent-gradient norm"),
)


def draw_curves(runs: Sequence[Path], *, out: Path) -> None:
    """Draws loss, accuracy and ascent norm by epoch, one line a run.

    Args:
        runs: folders of runs.
        out: picture to write; its suffix chooses the format.

    Raises:
        UserError: matplotlib is missing, a run has no metrics, or the format is unknown.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "report: draws with matplotlib, which is not installed; pip install msam-scale[plots]"
        ) from error
    figure = Figure(figsize=(4 * len(_PANELS), 3), layout="constrained")
    if out.suffix.lower().lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise UserError(f"--out: {out} has no format that can be drawn; .png, .svg or .pdf works")
    lines = {run: read_metric_lines(run / "metrics.jsonl") for run in runs}
    for axes, (split, name, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for run, values in lines.items():
            # Steps that were done again after a rollback have another line, which counts.
            points = {
                line["epoch"]: line[name]
                for line in values
                if line["split"] == split and line.get(name) is not None
            }
            if points:
                axes.plot(*zip(*sorted(points.items()), strict=True), label=run.name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    try:
        figure.savefig(out, dpi=150, format=out.suffix.lower().lstrip("."))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from error
