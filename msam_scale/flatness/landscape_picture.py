"""Pictures of loss landscapes, with the numbers beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import UserError
from msam_scale.flatness.landscape import Landscape, LandscapeRequest

_NUM_LEVELS = 16


def check_picture(out: Path) -> None:
    """Refuses a picture that could not be written, before anything is computed for it.

    Raises:
        UserError: matplotlib is missing, the format is unknown, or there is no such folder.
    """
    kind = out.suffix.lower().lstrip(".")
    if kind not in _figure().canvas.get_supported_filetypes():
        raise UserError(f"--out: {out} has no format that can be drawn; .png, .svg or .pdf works")
    if not out.parent.is_dir():
        raise UserError(f"--out: {out.parent} is no folder; make it first")


def draw_landscapes(
    landscapes: Sequence[Landscape], request: LandscapeRequest, *, out: Path
) -> Path:
    """Draws one plot with a curve for each run, or for two dimensions contours side by side.

    Contours of all runs are at the same levels, on a logarithmic scale where all losses are
    positive.

    Args:
        landscapes: of the runs.
        request: what they were measured with.
        out: the picture, see `check_picture`.

    Returns:
        The JSON file beside it, which holds the numbers: losses that are not finite are null.

    Raises:
        UserError: a file cannot be written.
    """
    columns = len(landscapes) if request.dimensions == 2 else 1
    figure = _figure(figsize=(4.2 * columns + 0.8, 3.8), layout="constrained")
    all_axes = figure.subplots(1, columns, squeeze=False)[0]
    if request.dimensions == 1:
        _draw_curves(all_axes[0], landscapes, request)
    else:
        _draw_contours(figure, all_axes, landscapes, request)
    beside = out.with_suffix(".json")
    try:
        figure.savefig(out, dpi=150, format=out.suffix.lower().lstrip("."))
        beside.write_text(json.dumps(_numbers(landscapes, request), indent=1) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"--out: {error.filename} cannot be written: {error.strerror}") from error
    return beside


def _draw_curves(axes: Any, landscapes: Sequence[Landscape], request: LandscapeRequest) -> None:
    for landscape in landscapes:
        axes.plot(request.coordinates, landscape.losses.numpy(), label=_name(landscape))
    axes.set_xlabel("filter-normalized direction")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_contours(
    figure: Any, all_axes: Sequence[Any], landscapes: Sequence[Landscape], request: LandscapeRequest
) -> None:
    from matplotlib.colors import LogNorm, Normalize

    values = np.stack([landscape.losses.numpy() for landscape in landscapes])
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    if low == high:  # contours need levels that differ
        low, high = low - 0.5, high + 0.5
    is_positive = low > 0
    space, scale = (np.geomspace, LogNorm) if is_positive else (np.linspace, Normalize)
    levels = space(low, high, _NUM_LEVELS)
    for axes, landscape, losses in zip(all_axes, landscapes, values, strict=True):
        # Contours have x first, an array its rows: the transpose puts the first direction on x.
        drawn = axes.contourf(
            request.coordinates,
            request.coordinates,
            np.ma.masked_invalid(losses.T),
            levels=levels,
            norm=scale(low, high),
            extend="both",
        )
        axes.plot(0, 0, marker="+", color="white")
        axes.set_title(f"{_name(landscape)}: loss {landscape.centre:.4g}", fontsize=10)
        axes.set_xlabel("first direction")
        axes.set_ylabel("second direction")
        axes.set_aspect("equal")
    bar = figure.colorbar(drawn, ax=list(all_axes), label="training loss")
    bar.set_ticks(levels[::3], labels=[f"{level:.3g}" for level in levels[::3]])
    bar.minorticks_off()


def _numbers(landscapes: Sequence[Landscape], request: LandscapeRequest) -> dict[str, Any]:
    return {
        "dimensions": request.dimensions,
        "radius": request.radius,
        "seed": request.seed,
        "coordinates": request.coordinates,
        "runs": [
            {
                "run": landscape.run,
                "step": landscape.step,
                "samples": landscape.num_samples,
                "loss": landscape.centre,
                "losses": _finite(landscape.losses.tolist()),
            }
            for landscape in landscapes
        ],
    }


def _finite(values: Any) -> Any:
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if isfinite(values) else None


def _name(landscape: Landscape) -> str:
    return Path(landscape.run).name


def _figure(**arguments: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "landscape: draws with matplotlib, which is not installed; pip install "
            "msam-scale[plots]"
        ) from error
    return Figure(**arguments)
