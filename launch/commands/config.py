"""`msam-scale config`: look at a config without running it."""

from __future__ import annotations

import argparse
import json
import sys

from launch.arguments import add_config_arguments, count
from msam_scale.batch_plan import BatchPlan
from msam_scale.config import Config, load_config
from msam_scale.config.describe import json_schema
from msam_scale.config.document import markdown_table
from msam_scale.config.plan_checks import micro_batch_count, shard_group_size

NAME = "config"
HELP = "check a config, show it with all defaults, or describe all settings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `check`, `show`, `schema` and `table`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    check = actions.add_parser("check", help="say everything that is wrong, or ok")
    add_config_arguments(check)
    check.add_argument(
        "--nproc", type=count, metavar="N", help="ranks that the mini-batch has to be laid out on"
    )
    check.add_argument(
        "--no-data", action="store_true", help="do not look for the data that the config names"
    )
    check.set_defaults(action=_check)

    show = actions.add_parser("show", help="print it as YAML, every default filled in")
    add_config_arguments(show)
    show.set_defaults(action=_show)

    schema = actions.add_parser("schema", help="print the JSON Schema of a config")
    schema.set_defaults(action=_schema)

    table = actions.add_parser("table", help="print a Markdown table of all settings")
    table.set_defaults(action=_table)


def run(arguments: argparse.Namespace) -> int:
    """Carries the action out; prints to stdout."""
    arguments.action(arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from msam_scale.training import check_run

    loaded = check_run(
        arguments.config,
        overrides=arguments.overrides,
        world_size=arguments.nproc,
        with_data=not arguments.no_data,
    )
    for note in loaded.notes:
        print(note, file=sys.stderr)
    config = loaded.config
    print(f"{arguments.config}: ok: {_summary(config, world_size=arguments.nproc)}")


def _show(arguments: argparse.Namespace) -> None:
    sys.stdout.write(load_config(arguments.config, overrides=arguments.overrides).to_yaml())


def _schema(arguments: argparse.Namespace) -> None:
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _table(arguments: argparse.Namespace) -> None:
    sys.stdout.write(markdown_table())


def _summary(config: Config, *, world_size: int | None) -> str:
    objective, batch_size = config.objective, config.batch.size
    micro_batches = micro_batch_count(
        algorithm=objective.algorithm, micro_batches=objective.micro_batches
    )
    assert micro_batches is not None, "a loaded config has its micro-batches"
    summary = (
        f"{objective.algorithm}, B = {batch_size}, m = {micro_batches}, "
        f"{config.sharding.strategy}, {config.precision}"
    )
    if world_size is None:
        return f"{summary} (layout not checked: give --nproc)"
    shard_group = shard_group_size(
        config.sharding.strategy,
        shard_group=config.sharding.shard_group,
        world_size=world_size,
    )
    plan = BatchPlan(batch_size, micro_batches, world_size, shard_group)
    return (
        f"{summary}, W = {world_size}: {_counted(plan.groups, 'group')} of "
        f"{_counted(plan.group_size, 'rank')}, each with {_counted(plan.sequential, 'micro-batch')}"
        f" of {_counted(plan.micro_batch_size, 'sample')}"
    )


def _counted(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
