"""The `msam-scale` command: finds the command, runs it, and turns the outcome into an exit code."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from launch.commands import COMMANDS
from launch.exit_codes import FAILURE, INTERRUPTED, USER_ERROR
from launch.output import calm_output, told


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; by default those of this process.

    Returns:
        The exit code: 0 for success, 2 for what the user can mend (one line on stderr), 130 for an
        interrupt, 1 for everything else (with its traceback).
    """
    with calm_output():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parse(argv)
    except SystemExit as end:  # argparse has printed help, or what is wrong with the arguments
        return end.code if isinstance(end.code, int) else FAILURE
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("msam-scale: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if (line := told(error)) is None:
            traceback.print_exc()
            return FAILURE
        print(f"msam-scale: {line}", file=sys.stderr)
        return USER_ERROR
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; a command's `run` is in the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="msam-scale",
        description="Train with mSAM: one result on any number of ranks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('msam-scale')}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.NAME, help=command.HELP, description=command.HELP, allow_abbrev=False
        )
        subparser.set_defaults(run=command.run)
        command.add_arguments(subparser)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    words = sys.argv[1:] if argv is None else argv
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(USER_ERROR)
    arguments, rest = parser.parse_known_args(words)
    # argparse leaves KEY=VALUE words over that come after an option.
    takes_settings = hasattr(arguments, "overrides")
    if rest and (not takes_settings or any(word[0:1] == "-" for word in rest)):
        way = "; a setting is a word like optimizer.lr=0.1" if takes_settings else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{way}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
