"""The Markdown table of an experiment, the paper's values below ours."""

from __future__ import annotations

from collections.abc import Iterator

from msam_scale.reproduction.experiment import PaperValue
from msam_scale.reproduction.measures import MEASURES
from msam_scale.reproduction.results import Results, Spread


def markdown(results: Results, *, command: str, picture: str | None) -> str:
    """The table with all that is needed to read it and to make it again.

    Args:
        results: all that is known.
        command: that made them.
        picture: file name of the picture beside it, if there is one.
    """
    return "\n".join(_lines(results, command=command, picture=picture)) + "\n"


def entry(one: Spread, *, num_decimals: int, num_seeds: int) -> str:
    """One entry, `96.40 ± 0.06`; with the number of seeds where some are missing."""
    if one.mean is None:
        return "–"
    text = _shown(one.mean, one.std, num_decimals=num_decimals)
    return text if one.num_values == num_seeds else f"{text} (n = {one.num_values})"


def _lines(results: Results, *, command: str, picture: str | None) -> Iterator[str]:
    plan = results.plan
    experiment, scale = plan.experiment, plan.scale
    measure, num_seeds = MEASURES[experiment.measure], len(plan.seeds)
    yield f"# {experiment.title}, scale {plan.scale_name}"
    yield ""
    yield f"    {command}"
    yield ""
    seeds = f"{num_seeds} seeds" if num_seeds > 1 else "1 seed"
    yield f"{measure.label}; mean ± sample standard deviation over {seeds}, counted from 0."
    if measure.relative_to is not None:
        base = scale.columns[measure.relative_to].title
        yield f"Each seed is a round, whose values are divided by those of {base}."
    if scale.note is not None:
        yield ""
        yield scale.note.strip()
    yield ""
    yield _row("", [column.title for column in scale.columns.values()])
    yield "| --- |" + " ---: |" * len(scale.columns)
    for name, row in scale.rows.items():
        spreads = [results.spread(name, column) for column in scale.columns]
        entries = [
            entry(one, num_decimals=measure.num_decimals, num_seeds=num_seeds) for one in spreads
        ]
        yield _row(row.title, entries)
        paper = results.paper_row(name)
        if paper is not None:
            printed = [paper.values.get(column) for column in scale.columns]
            shown = [_printed(one, num_decimals=measure.num_decimals) for one in printed]
            yield _row(f"*the paper: {paper.title}*", shown)
    yield ""
    yield f"The paper: {experiment.published.source.strip()}"
    if picture is not None:
        yield ""
        yield f"![{experiment.title}]({picture})"
    if results.missing:
        yield ""
        names = ", ".join(cell.run.name for cell in results.missing)
        yield f"Not finished ({len(results.missing)} of {len(plan.cells)} runs): {names}."


def _row(title: str, entries: list[str]) -> str:
    return "| " + " | ".join([title, *entries]) + " |"


def _printed(one: PaperValue | None, *, num_decimals: int) -> str:
    return "" if one is None else f"*{_shown(one.mean, one.std, num_decimals=num_decimals)}*"


def _shown(mean: float, std: float | None, *, num_decimals: int) -> str:
    text = f"{mean:.{num_decimals}f}"
    return text if std is None else f"{text} ± {std:.{num_decimals}f}"
