"""`msam-scale export`: trained weights for timm, transformers or any other program."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_pipelines.errors import UserError

NAME = "export"
HELP = "write the weights of a run for timm, transformers or any other program"

_FORMATS = ("safetensors", "timm", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the run, the format and the folder."""
    parser.add_argument("folder", metavar="RUN", help="folder of a run, or of one checkpoint")
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        required=True,
        help="safetensors: the weights alone; timm: a folder for "
        'timm.create_model("local-dir:DIR", pretrained=True); transformers: a folder for '
        "from_pretrained",
    )
    parser.add_argument(
        "--averaged", action="store_true", help="the averaged weights of a run with training.ema"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="with --format transformers: the tokenizer's folder or hub name, if it is not found "
        "under the model's name",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write; a new one")


def run(arguments: argparse.Namespace) -> int:
    """Writes and says what; returns 0."""
    from data_pipelines.durable_files import new_directory
    from msam_scale.export import EXPORT_FORMATS, load_trained_model, write_tokenizer

    has_tokenizer = arguments.format == "transformers"
    if arguments.tokenizer is not None and not has_tokenizer:
        raise UserError("--tokenizer: has no effect without --format transformers; leave it out")
    trained = load_trained_model(Path(arguments.folder), averaged=arguments.averaged)
    with new_directory(Path(arguments.out)) as partial:
        EXPORT_FORMATS[arguments.format](trained, partial)
        if has_tokenizer:
            write_tokenizer(trained, partial, named=arguments.tokenizer)
        for file in partial.iterdir():
            # safetensors writes files that their owner alone may read.
            file.chmod(partial.stat().st_mode & 0o666)
    print(f"{arguments.out}: {trained.config.model.name} after {trained.step} steps")
    return 0
