"""`msam-scale checkpoint`: what checkpoints there are, whether they are intact, what is in them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launch.exit_codes import SUCCESS, USER_ERROR
from launch.output import escaped

if TYPE_CHECKING:
    from msam_scale.checkpoint import Shards

NAME = "checkpoint"
HELP = "list the checkpoints of a run, verify them, or look into one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `list`, `verify` and `inspect`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    what = "folder of a run, of its checkpoints, or of one checkpoint"

    lists = actions.add_parser("list", help="steps, sizes and whether every file is there")
    lists.add_argument("folder", metavar="RUN", help=what)
    lists.set_defaults(action=_list)

    verify = actions.add_parser(
        "verify", help="read every file through and compare checksums; exit code 2 if one differs"
    )
    verify.add_argument("folder", metavar="RUN", help=what)
    verify.set_defaults(action=_verify)

    inspect = actions.add_parser("inspect", help="what a checkpoint is of and what it holds")
    inspect.add_argument("folder", metavar="RUN", help=f"{what}; of several the newest counts")
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.set_defaults(action=_inspect)


def run(arguments: argparse.Namespace) -> int:
    """Does what was asked for; returns the exit code."""
    code: int = arguments.action(arguments)
    return code


def _list(arguments: argparse.Namespace) -> int:
    from msam_scale.checkpoint import DamagedCheckpointError, Manifest

    for folder in _checkpoints(Path(arguments.folder)):
        try:
            manifest = Manifest.read(folder)
            manifest.check_sizes(folder)
        except DamagedCheckpointError as error:
            print(f"{folder.name}  {error}")
        else:
            size = sum(record.size for record in manifest.files.values())
            print(f"{folder.name}  {_bytes(size):>10}  {len(manifest.files)} files  complete")
    return SUCCESS


def _verify(arguments: argparse.Namespace) -> int:
    from msam_scale.checkpoint import faults_of

    code = SUCCESS
    for folder in _checkpoints(Path(arguments.folder)):
        faults = list(faults_of(folder))
        for fault in faults:
            print(fault)
        if not faults:
            print(f"{folder}: intact")
        code = USER_ERROR if faults else code
    return code


def _inspect(arguments: argparse.Namespace) -> int:
    from msam_scale.checkpoint import Manifest, Progress, Shards

    folder = _checkpoints(Path(arguments.folder))[-1]
    manifest, progress = Manifest.read(folder), Progress.read(folder)
    config = progress.resolved_config(folder)
    shards = Shards(folder, manifest)
    rows = {
        "checkpoint": folder,
        "step": progress.step,
        "skipped steps": progress.skipped_steps[0],
        "model": f"{config.model.source} {config.model.name}",
        "objective": config.objective.algorithm,
        "optimizer": progress.optimizer,
        "saved with": f"sharding.strategy {config.sharding.strategy}, {config.precision}",
        "versions": ", ".join(f"{name} {text}" for name, text in progress.versions.items()),
        "files": f"{len(manifest.files)} ({_bytes(sum(f.size for f in manifest.files.values()))})",
    }
    for kind, num_tensors, num_elements, num_bytes in _kinds(shards):
        rows[f"{kind} state"] = (
            f"{num_tensors} tensors, {num_elements:,} elements, {_bytes(num_bytes)}"
        )
    if (fingerprint := progress.extra.get("data_fingerprint")) is not None:
        rows["data"] = f"fingerprint {fingerprint}"
    for name, value in rows.items():
        print(f"{escaped(name) + ':':<15} {escaped(str(value))}")
    if arguments.tensors:
        for name in shards.names:
            dtype = str(shards.dtype(name)).removeprefix("torch.")
            print(f"{escaped(name)}  {dtype}  {tuple(shards.shape(name))}")
    return SUCCESS


def _kinds(shards: Shards) -> Iterator[tuple[str, int, int, int]]:
    kinds = sorted({name.partition("/")[0] for name in shards.names})
    for kind in kinds:
        names = [name for name in shards.names if name.startswith(f"{kind}/")]
        sizes = [shards.shape(name).numel() for name in names]
        num_bytes = sum(
            size * shards.dtype(name).itemsize for name, size in zip(names, sizes, strict=True)
        )
        yield kind, len(names), sum(sizes), num_bytes


def _checkpoints(location: Path) -> list[Path]:
    """The checkpoints at a place, oldest first.

    Raises:
        UserError: there is none.
    """
    from data_pipelines.errors import UserError
    from msam_scale.checkpoint import step_folders

    inside = location / "checkpoints"
    folders = step_folders(inside if inside.is_dir() else location)
    if not folders and (location / "manifest.json").is_file():
        folders = [location]
    if not folders:
        raise UserError(f"{location}: no checkpoint here; the folder of a run works")
    return folders


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"
