"""`msam-scale report`: draw the curves of finished or running trainings."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "report"
HELP = "draw the training curves of one or more runs into a picture"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the runs and the picture."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument(
        "--out", metavar="FILE", required=True, help="picture to write: .png, .svg or .pdf"
    )


def run(arguments: argparse.Namespace) -> int:
    """Draws; returns 0."""
    from msam_scale.monitoring.curves import draw_curves

    draw_curves([Path(run) for run in arguments.runs], out=Path(arguments.out))
    print(arguments.out)
    return 0
