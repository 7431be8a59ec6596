"""The planted faults fit the tree: their places and the tests that they name are there."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.planted_faults import ROOT, Fault, all_faults

FAULTS = all_faults()


def test_there_are_many_and_each_has_its_own_name() -> None:
    counts = Counter(fault.name for fault in FAULTS)
    assert [name for name, count in counts.items() if count > 1] == []
    assert len(FAULTS) >= 80


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_has_one_place_and_tests_that_are_there(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text("utf-8").count(fault.old) == 1
    assert fault.old != fault.new
    assert fault.claim
    assert fault.tests
    for test in fault.tests:
        file, _, function = test.partition("::")
        source = (ROOT / file).read_text("utf-8")
        assert not function or f"def {function.partition('[')[0]}(" in source, test
