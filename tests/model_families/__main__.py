"""Compares families of models with the reference, and writes the table of the documentation.

    python -m tests.model_families [--write docs/models.md] [FAMILY …]

A table that is there keeps the rows of families that are not asked for.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import torch
import transformers

from tests.model_families import all_families, table
from tests.model_families.compared import compare


def main() -> int:
    """Returns 0 if every family that was asked for is trained exactly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="such as timm-resnet")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file for the table")
    arguments = parser.parse_args()
    families = all_families()
    if unknown := set(arguments.families) - families.keys():
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    logging.getLogger("msam_scale").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    rows = table.rows_in(arguments.write) if arguments.write else {}
    failed = []
    for name in arguments.families or families:
        start = time.monotonic()
        try:
            result = compare(families[name])
        except Exception as error:  # the others are compared nevertheless
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            failed.append(name)
            continue
        rows[name] = table.row(families[name], result)
        print(f"{rows[name]} {time.monotonic() - start:.1f} s", flush=True)
        failed += [] if result.is_exact else [name]
        if arguments.write:
            arguments.write.write_text(table.document(rows), "utf-8")
    print(f"not exact: {', '.join(failed)}" if failed else "all exact")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
