"""`msam-scale landscape`: the loss around the weights that runs have found, as a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.arguments import add_run_arguments, count

NAME = "landscape"
HELP = "draw the training loss around the weights of one or more runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the runs, the grid and the picture."""
    add_run_arguments(parser, several=True)
    parser.add_argument(
        "--dimensions",
        type=int,
        choices=(1, 2),
        default=1,
        help="along one random direction, all runs in one plot, by default; or along two, as "
        "contours side by side",
    )
    parser.add_argument(
        "--points",
        type=count,
        default=21,
        metavar="N",
        help="points along each direction, an odd number; 21 by default",
    )
    parser.add_argument(
        "--radius",
        type=float,
        default=1.0,
        metavar="R",
        help="how far to go, in lengths of each filter of the weights; 1 by default",
    )
    parser.add_argument(
        "--samples",
        type=count,
        metavar="N",
        help="use N random training samples; all of them by default",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the directions; 0 by default"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="picture to write: .png, .svg or .pdf; the numbers go to the same name with .json",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures, draws and names both files; returns 0."""
    from tqdm import tqdm

    from msam_scale.flatness.landscape import LandscapeRequest, measure_landscape
    from msam_scale.flatness.landscape_picture import check_picture, draw_landscapes
    from msam_scale.flatness.opened_run import open_run

    request = LandscapeRequest(
        dimensions=arguments.dimensions,
        num_points=arguments.points,
        radius=arguments.radius,
        num_samples=arguments.samples,
        seed=arguments.seed,
    )
    out = Path(arguments.out)
    check_picture(out)
    landscapes = []
    # No bar where nobody watches.
    total = len(arguments.runs) * request.num_points**request.dimensions
    with tqdm(total=total, unit="point", disable=not sys.stderr.isatty()) as bar:
        for folder in arguments.runs:
            # One run after the other: one model is in memory at a time.
            opened = open_run(Path(folder), command="landscape", allow_code=arguments.allow_code)
            landscapes.append(measure_landscape(opened, request, report=bar.update))
    beside = draw_landscapes(landscapes, request, out=out)
    for landscape in landscapes:
        print(
            f"{landscape.run} after step {landscape.step}: training loss {landscape.centre:.6g} "
            f"over {landscape.num_samples} samples"
        )
    print(f"{out} {beside}")
    return 0
