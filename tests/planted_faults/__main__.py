"""Plants faults, runs the tests that should notice them, and prints those that went unnoticed.

    python -m tests.planted_faults [NAME …] [--jobs N] [--again]

A NAME is a fault's, or that of a module of faults. For each fault the tests that it names run until
one fails; where none does, the whole of `make test`. Before, the named tests run once without any
fault, so that a test that fails anyway is not taken for one that notices. What was noticed is not
tried again while product and tests stay as they are, unless `--again` asks for it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from tests.planted_faults import ROOT, Fault, all_faults
from tests.planted_faults._pytest_runs import NOTICED, PASSED, STOPPED, run_pytest
from tests.tree import copy_of_the_tree, state_of_the_tree

_RECORD = ROOT / "build" / "planted_faults.jsonl"
_SECONDS_FOR_NAMED_TESTS = 600
_SECONDS_FOR_ALL_TESTS = 3600


def main() -> int:
    """Returns 0 if every fault was noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree at work at a time")
    parser.add_argument("--again", action="store_true", help="try what was noticed before, too")
    arguments = parser.parse_args()
    faults = _chosen(arguments.names)
    state = state_of_the_tree(ROOT)
    done = set() if arguments.again else _noticed_before(state)
    waiting = [fault for fault in faults if fault.name not in done]
    print(f"{len(faults)} faults, {len(faults) - len(waiting)} of them noticed before", flush=True)
    with _copies(max(1, min(arguments.jobs, len(waiting)))) as copies:
        if waiting and not _passes_without_a_fault(waiting, copies):
            return 1
        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = list(pool.map(lambda fault: _is_noticed(fault, copies, state), waiting))
    unnoticed = [fault for fault, noticed in zip(waiting, results, strict=True) if not noticed]
    for fault in unnoticed:
        print(f"UNNOTICED: {fault.name} ({fault.file}): {fault.claim}")
    print(f"{len(faults) - len(unnoticed)} of {len(faults)} planted faults were noticed")
    return 1 if unnoticed else 0


def _chosen(names: Sequence[str]) -> list[Fault]:
    faults = all_faults()
    if not names:
        return faults
    modules = {name for name in names if (Path(__file__).parent / f"{name}.py").is_file()}
    found = [fault for name in modules for fault in _faults_of(name)]
    by_name = {fault.name: fault for fault in faults}
    for name in names:
        if name not in modules:
            if name not in by_name:
                sys.exit(f"{name}: no fault and no module of faults has this name")
            found.append(by_name[name])
    return found


def _faults_of(module: str) -> Sequence[Fault]:
    faults: Sequence[Fault] = __import__(f"tests.planted_faults.{module}", fromlist=["x"]).FAULTS
    return faults


def _noticed_before(state: str) -> set[str]:
    if not _RECORD.is_file():
        return set()
    rows = [json.loads(line) for line in _RECORD.read_text("utf-8").splitlines()]
    return {row["name"] for row in rows if row["state"] == state}


@contextmanager
def _copies(number: int) -> Iterator[SimpleQueue[Path]]:
    """Copies of the tree, for whoever takes one out of the queue."""
    with tempfile.TemporaryDirectory(prefix="planted") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for count in range(number):
            copy = Path(folder, str(count), ROOT.name)
            copy_of_the_tree(ROOT, copy)
            copies.put(copy)
        yield copies


def _passes_without_a_fault(faults: Sequence[Fault], copies: SimpleQueue[Path]) -> bool:
    tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    print(f"without a fault: {len(tests)} files or tests", flush=True)
    copy = copies.get()
    code, said = run_pytest(copy, tests, "-n", "2", seconds=_SECONDS_FOR_ALL_TESTS)
    copies.put(copy)
    if code != PASSED:
        print(f"{said}\nwithout any fault the named tests have to pass")
    return code == PASSED


def _is_noticed(fault: Fault, copies: SimpleQueue[Path], state: str) -> bool:
    copy = copies.get()
    start = time.monotonic()
    try:
        text = fault.plant(copy)
        code, said = run_pytest(copy, fault.tests, "-n", "0", seconds=_SECONDS_FOR_NAMED_TESTS)
        by = "the tests it names"
        if code == PASSED:
            # Those of the faults themselves miss the text of each that is planted.
            words = ("-n", "2", "--ignore=tests/test_planted_faults.py")
            code, said = run_pytest(copy, [], *words, seconds=_SECONDS_FOR_ALL_TESTS)
            code = NOTICED if code == STOPPED else code
            by = "make test, but not by the tests it names"
        fault.take_out(copy, text)
    finally:
        copies.put(copy)
    if code not in (NOTICED, PASSED):
        print(f"{said}\n{fault.name}: pytest ended with {code} before it tested anything")
        return False
    seconds = time.monotonic() - start
    verdict = f"noticed by {by}" if code == NOTICED else "UNNOTICED"
    print(f"{seconds:6.0f} s  {fault.name}: {verdict}", flush=True)
    if code == NOTICED:
        _RECORD.parent.mkdir(exist_ok=True)
        with _RECORD.open("a", encoding="utf-8") as record:
            record.write(json.dumps({"state": state, "name": fault.name}) + "\n")
    return code == NOTICED


if __name__ == "__main__":
    sys.exit(main())
