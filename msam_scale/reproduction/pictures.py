"""The picture of an experiment: one panel a row, lines with error bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from msam_scale.reproduction.measures import MEASURES
from msam_scale.reproduction.results import Results


def draw(results: Results, *, path: Path) -> None:
    """Draws the mean over the seeds, with the sample standard deviation as error bars.

    Columns without a place on the axis become level lines.

    Args:
        results: all that is known.
        path: picture to write.

    Raises:
        UserError: matplotlib is missing.
    """
    check_can_draw()
    from matplotlib.figure import Figure

    plan = results.plan
    rows, axis = plan.scale.rows, plan.experiment.axis
    figure = Figure(figsize=(4.5 * len(rows), 3.5), layout="constrained")
    panels = figure.subplots(1, len(rows), squeeze=False)[0]
    for panel, (name, row) in zip(panels, rows.items(), strict=True):
        _draw_lines(panel, results, name)
        panel.set_title(row.title, fontsize=10)
        panel.set_xlabel(axis)
        panel.set_ylabel(f"{row.metric}, {MEASURES[plan.experiment.measure].label}")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def check_can_draw() -> None:
    """Raises a UserError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "reproduce: draws with matplotlib, which is not installed; pip install "
            "msam-scale[plots]"
        ) from error


def _draw_lines(panel: Any, results: Results, row: str) -> None:
    columns = results.plan.scale.columns
    points: dict[str, list[tuple[float, float, float]]] = {}
    for name, column in columns.items():
        one = results.spread(row, name)
        if one.mean is None:
            continue
        if column.at is not None and column.series is not None:
            points.setdefault(column.series, []).append((column.at, one.mean, one.std or 0.0))
        else:
            line = panel.axhline(one.mean, linestyle=":", label=column.title)
            line.set_color(f"C{len(columns) - list(columns).index(name)}")
    for series, values in points.items():
        at, means, stds = zip(*sorted(values), strict=True)
        panel.errorbar(at, means, yerr=stds, marker="o", capsize=3, label=series)
    places = sorted({at for values in points.values() for at, _, _ in values})
    # Powers of two, as m is, are evenly spaced on their logarithm.
    if len(places) > 2 and places[0] > 0 and places[-1] / places[0] >= 16:
        panel.set_xscale("log", base=2)
    if places:
        panel.set_xticks(places, [f"{at:g}" for at in places])
        panel.minorticks_off()
