"""The long parts of the tests: `make test-all`, or `make test-all PARTS="chaos readme"`.

    python -m tests.parts [PART …] [--list] [--again]

Each part runs alone, in at most 60 minutes. One that has passed is not run again while the files of
the checkout stay as they are, so that what was stopped goes on where it was; `--again` runs it
anyway.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.planted_faults import ROOT
from tests.tree import state_of_the_tree

_PASSED = ROOT / "build" / "parts"
Step = tuple[str, dict[str, str]]
"""A shell-free command line, and what its environment has besides."""

# How kernels are chosen, from the least to all that the library has; the processor has to have what
# a setting needs.
_ATEN = {"default": "", "avx2": "avx2", "avx512": "avx512f"}
_ONEDNN = {"SSE41": "sse4_1", "AVX2": "avx2", "AVX512_CORE": "avx512bw"}


def main() -> int:
    """Returns 0 if every part asked for has passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="by default all")
    parser.add_argument("--list", action="store_true", help="print the names of the parts")
    parser.add_argument("--again", action="store_true", help="run what has passed before, too")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    if arguments.list:
        print("\n".join(f"{name:16}{part.description}" for name, part in PARTS.items()))
        return 0
    failed = [name for name in arguments.parts or PARTS if not _passes(name, again=arguments.again)]
    print(f"failed: {', '.join(failed)}" if failed else "all parts passed")
    return 1 if failed else 0


def _passes(name: str, *, again: bool) -> bool:
    mark, state = _PASSED / name, state_of_the_tree(ROOT)
    if not again and mark.is_file() and mark.read_text() == state:
        print(f"== {name}: has passed on this tree", flush=True)
        return True
    start = time.monotonic()
    steps = PARTS[name].steps or (lambda: [(f"python -m pytest --part {name}", {})])
    for line, settings in steps():
        said = " ".join(f"{key}={value}" for key, value in settings.items())
        print(f"== {name}: {said} {line}".replace("  ", " "), flush=True)
        words = [sys.executable if word == "python" else word for word in line.split()]
        code = subprocess.run(words, cwd=ROOT, env=os.environ | settings, check=False).returncode
        if code != 0:
            print(f"== {name}: FAILED", flush=True)
            return False
    print(f"== {name}: passed in {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(state)
    return True


def _kernels() -> list[Step]:
    """The tests of layouts with each pair of settings; the threads alternate."""
    flags = _processor_flags()
    steps: list[Step] = []
    for number, (aten, onednn) in enumerate(itertools.product(_ATEN, _ONEDNN)):
        missing = {_ATEN[aten], _ONEDNN[onednn]} - {""} - flags
        if missing:
            print(f"skipped: {aten} and {onednn}; this processor has no {', '.join(missing)}")
            continue
        settings = {
            "ATEN_CPU_CAPABILITY": aten,
            "ONEDNN_MAX_CPU_ISA": onednn,
            "OMP_NUM_THREADS": "14"[number % 2],
        }
        steps.append(("python -m pytest -m layouts", settings))
    return steps


def _processor_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@dataclass(frozen=True)
class Part:
    """What runs under a name.

    Attributes:
        description: what it shows, in a few words.
        steps: the commands, one after the other; by default the tests marked with the name.
    """

    description: str
    steps: Callable[[], list[Step]] | None = None


PARTS: dict[str, Part] = {
    "chaos": Part(
        "200 kills of runs under every launcher: at every stage of a save, in starts, evaluations "
        "and at random moments",
        lambda: [("python -m tests.chaos --kills 200", {})],
    ),
    "readme": Part("every command of the README at full length"),
    "launchers": Part("every launcher with every strategy"),
    "signals": Part("signals, lost ranks and lost launchers under every launcher"),
    "trajectories": Part("every layout on every number of ranks with every kind of net"),
    "recipes": Part("every recipe of the paper built and planned"),
    "reproduction": Part("tables and figures of the paper at laptop scale"),
    "models": Part("families of timm and transformers, with and without checkpointing"),
    "data": Part("large and many-process runs of the data pipelines"),
    "memory": Part("what memory the engine and the loaders take"),
    "benchmarks": Part("that each benchmark runs and reports its ratios"),
    "examples": Part(
        "the property tests with 2,000 examples each",
        lambda: [("python -m pytest -m hypothesis", {"HYPOTHESIS_PROFILE": "examples"})],
    ),
    "fuzz": Part("20,000 strange configs and damaged files, by a seed"),
    "kernels": Part(
        "the tests marked `layouts` under nine choices of processor kernels and threads", _kernels
    ),
    "conditions": Part(
        "`make test`'s tests beside a busy program, in a path with a space, with ports taken, with "
        "the least kernels, and as another user",
        lambda: [("python -m tests.conditions", {})],
    ),
    "planted_faults": Part("every planted fault", lambda: [("python -m tests.planted_faults", {})]),
}


if __name__ == "__main__":
    sys.exit(main())
