"""One order everywhere: the same batches on any layout, and across a kill and a resume."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shards import make_photos

from data_pipelines import MicroBatchLoader, SampleIndex, ShardReader, transform_preset
from data_pipelines.order import augmentation_rng, sample_order

BATCH_SIZE = 24
MICRO_BATCHES = 8
NUM_SAMPLES = 80  # three steps an epoch, eight samples left over
NUM_STEPS = 5
PRESET = transform_preset("inception_tv:size=8")
GLOBAL, WINDOW, LANES = "global", "window:shards=3", "lanes:lanes=4,shards=2"
pytestmark = [
    pytest.mark.layouts,
    # More workers than this machine may have cores; torch says so.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    return make_photos(tmp_path_factory.mktemp("photos") / "train", NUM_SAMPLES)


def layout(num_ranks: int, *, chunk: int) -> list[list[range]]:
    """What each rank loads: its micro-batches, or its slice of each, in chunks."""
    size = BATCH_SIZE // MICRO_BATCHES
    spread = next(n for n in range(1, num_ranks + 1) if MICRO_BATCHES % (num_ranks / n) == 0)
    per_rank = size // spread
    items: list[list[range]] = [[] for _ in range(num_ranks)]
    groups = num_ranks // spread
    for micro_batch in range(MICRO_BATCHES):
        for part in range(spread):
            rank = micro_batch // (MICRO_BATCHES // groups) * spread + part
            start = micro_batch * size + part * per_rank
            for first in range(start, start + per_rank, chunk):
                items[rank].append(range(first, min(first + chunk, start + per_rank)))
    return items


class Steps:
    """The mini-batches of all steps, put together from what the ranks of a layout load."""

    def __init__(
        self, index: SampleIndex, *, order: str, num_ranks: int, chunk: int, num_workers: int = 0
    ) -> None:
        self.positions = layout(num_ranks, chunk=chunk)
        everything = sorted(p for items in self.positions for item in items for p in item)
        assert everything == list(range(BATCH_SIZE))
        self.loaders = [
            MicroBatchLoader(
                index,
                order=order,
                seed=11,
                batch_size=BATCH_SIZE,
                positions=items,
                transform=PRESET,
                num_workers=num_workers,
                first_step=0,
                num_steps=NUM_STEPS,
                micro_batches=MICRO_BATCHES,
            )
            for items in self.positions
        ]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for each in self.loaders:
            each.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        states = [each.state_dict() for each in self.loaders]
        assert all(state == states[0] for state in states)
        return states[0]

    def __iter__(self) -> Iterator[str]:
        """Yields a hash of each mini-batch."""
        batches = [iter(each) for each in self.loaders]
        while True:
            images = torch.zeros(BATCH_SIZE, 8, 8, 3, dtype=torch.uint8)
            labels = torch.zeros(BATCH_SIZE, dtype=torch.int64)
            try:
                for items, of_rank in zip(self.positions, batches, strict=True):
                    for item in items:
                        part = slice(item.start, item.stop)
                        images[part], labels[part] = next(of_rank)
            except StopIteration:
                return
            yield hash_of(images.numpy(), labels.numpy())


def hash_of(images: Any, labels: Any) -> str:
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def from_scratch(photos: SampleIndex) -> dict[str, list[str]]:
    """The steps by order, as (order, seed, epoch, step) say, made without a loader."""
    found: dict[str, list[str]] = {}
    for name in (GLOBAL, WINDOW, LANES):
        order = sample_order(name, index=photos, seed=11, batch_size=BATCH_SIZE)
        for step in range(NUM_STEPS):
            epoch, place = divmod(step, NUM_SAMPLES // BATCH_SIZE)
            start = place * BATCH_SIZE
            ids = order.sample_ids(epoch, start=start, stop=start + BATCH_SIZE)
            images = np.zeros((BATCH_SIZE, 8, 8, 3), np.uint8)
            labels = np.zeros(BATCH_SIZE, np.int64)
            for i, sample in ShardReader(photos).read(ids.tolist()):
                images[i] = PRESET.augment(sample.image, augmentation_rng(11, epoch, int(ids[i])))
                labels[i] = sample.label
            found.setdefault(name, []).append(hash_of(images, labels))
    # No two steps, epochs or orders agree, so the comparison below does see them.
    assert len({each for of_order in found.values() for each in of_order}) == 3 * NUM_STEPS
    return found


# Every order with every number of ranks, chunks and workers, and nearly all pairs of these.
@pytest.mark.parametrize(
    ("order", "num_ranks", "chunk", "num_workers"),
    [
        (GLOBAL, 1, 3, 1),
        (GLOBAL, 2, 1, 0),
        (GLOBAL, 3, 2, 0),
        (GLOBAL, 4, 3, 0),
        (GLOBAL, 8, 2, 0),
        (WINDOW, 1, 1, 3),
        (WINDOW, 2, 3, 0),
        (WINDOW, 3, 1, 1),
        (WINDOW, 8, 3, 0),
        (LANES, 1, 2, 0),
        (LANES, 2, 2, 2),
        (LANES, 3, 3, 0),
        (LANES, 4, 1, 0),
    ],
)
def test_no_layout_changes_a_pixel(
    photos: SampleIndex,
    from_scratch: dict[str, list[str]],
    order: str,
    num_ranks: int,
    chunk: int,
    num_workers: int,
) -> None:
    steps = Steps(photos, order=order, num_ranks=num_ranks, chunk=chunk, num_workers=num_workers)
    assert list(steps) == from_scratch[order]


def run_until_killed(directory: str, order: str, last_step: str, out: str) -> None:
    """Notes each step and the state after it, and waits in the middle until it is killed."""
    steps = Steps(SampleIndex.open(directory), order=order, num_ranks=2, chunk=2, num_workers=1)
    with Path(out).open("w", encoding="utf-8") as file:
        for number, step in enumerate(steps, start=1):
            file.write(json.dumps({"hash": step, "state": steps.state_dict()}) + "\n")
            file.flush()
            if number == int(last_step):
                print("there", flush=True)
                sys.stdin.read()


def test_killed_run_goes_on_with_another_number_of_ranks(
    photos: SampleIndex, from_scratch: dict[str, list[str]], tmp_path: Path
) -> None:
    out, here = tmp_path / "steps.jsonl", Path(__file__).parent
    program = (
        "import sys, test_data_loading_one_order as test; test.run_until_killed(*sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(photos.directory), LANES, "4", str(out)],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parents[1]}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 4
    resumed = Steps(photos, order=LANES, num_ranks=8, chunk=3)
    resumed.load_state_dict(lines[-1]["state"])
    assert [line["hash"] for line in lines] + list(resumed) == from_scratch[LANES]
