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

from data_pipelines import MicroBatchLoader, SampleIndex, transform_preset
from data_pipelines.order import augmentation_rng

BATCH_SIZE = 24
MICRO_BATCHES = 8
NUM_SAMPLES = 80  # three steps an epoch, eight samples left over
NUM_STEPS = 7
# More workers than this machine may have cores; torch says so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
ORDERS = ["global", "window:shards=3", "lanes:lanes=4,shards=2"]


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


def loader(
    index: SampleIndex, *, order: str, positions: list[range], num_workers: int = 0
) -> MicroBatchLoader:
    return MicroBatchLoader(
        index,
        order=order,
        seed=11,
        batch_size=BATCH_SIZE,
        positions=positions,
        transform=transform_preset("inception_tv:size=8"),
        num_workers=num_workers,
        first_step=0,
        num_steps=NUM_STEPS,
        micro_batches=MICRO_BATCHES,
    )


class Steps:
    """The mini-batches of all steps, put together from what the ranks of a layout load."""

    def __init__(
        self, index: SampleIndex, *, order: str, num_ranks: int, chunk: int, num_workers: int
    ) -> None:
        self.positions = layout(num_ranks, chunk=chunk)
        assert sorted(p for items in self.positions for item in items for p in item) == list(
            range(BATCH_SIZE)
        )
        self.loaders = [
            loader(index, order=order, positions=items, num_workers=num_workers)
            for items in self.positions
        ]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for each in self.loaders:
            each.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        states = [each.state_dict() for each in self.loaders]
        assert all(state == states[0] for state in states)
        return states[0]

    def __iter__(self) -> Iterator[bytes]:
        batches = [iter(each) for each in self.loaders]
        while True:
            images = torch.zeros(BATCH_SIZE, 8, 8, 3, dtype=torch.uint8)
            labels = torch.zeros(BATCH_SIZE, dtype=torch.int64)
            try:
                for items, of_rank in zip(self.positions, batches, strict=True):
                    for item in items:
                        images[item.start : item.stop], labels[item.start : item.stop] = next(
                            of_rank
                        )
            except StopIteration:
                return
            yield images.numpy().tobytes() + labels.numpy().tobytes()


def trace(index: SampleIndex, **settings: Any) -> str:
    digest = hashlib.sha256()
    num_steps = 0
    for step in Steps(index, **settings):
        digest.update(step)
        num_steps += 1
    assert num_steps == NUM_STEPS
    return digest.hexdigest()


@pytest.mark.parametrize("order", ORDERS)
def test_no_layout_changes_a_pixel(photos: SampleIndex, order: str) -> None:
    expected = trace(photos, order=order, num_ranks=1, chunk=3, num_workers=0)
    for num_ranks in (1, 2, 3, 4, 8):
        for chunk in (1, 2, 3):
            found = trace(photos, order=order, num_ranks=num_ranks, chunk=chunk, num_workers=0)
            assert found == expected, (num_ranks, chunk)
    for num_ranks, chunk, num_workers in [
        (1, 3, 1),
        (1, 1, 3),
        (2, 3, 3),
        (3, 1, 1),
        (3, 1, 3),
        (4, 2, 3),
        (8, 3, 1),
        (8, 2, 3),
    ]:
        found = trace(
            photos, order=order, num_ranks=num_ranks, chunk=chunk, num_workers=num_workers
        )
        assert found == expected, (num_ranks, chunk, num_workers)


def test_what_is_hashed_is_what_the_plan_says(photos: SampleIndex) -> None:
    """The other half: the batches are those of (order, seed, epoch, step), made from scratch."""
    from data_pipelines import ShardReader, sample_order

    preset = transform_preset("inception_tv:size=8")
    hashes = set()
    for name in ORDERS:
        order = sample_order(name, index=photos, seed=11, batch_size=BATCH_SIZE)
        steps = Steps(photos, order=name, num_ranks=2, chunk=3, num_workers=0)
        for step, found in enumerate(steps):
            epoch, place = divmod(step, NUM_SAMPLES // BATCH_SIZE)
            start = place * BATCH_SIZE
            ids = order.sample_ids(epoch, start=start, stop=start + BATCH_SIZE)
            images = np.zeros((BATCH_SIZE, 8, 8, 3), np.uint8)
            labels = np.zeros(BATCH_SIZE, np.int64)
            for i, sample in ShardReader(photos).read(ids.tolist()):
                images[i] = preset.augment(sample.image, augmentation_rng(11, epoch, int(ids[i])))
                labels[i] = sample.label
            assert found == images.tobytes() + labels.tobytes()
            hashes.add(hashlib.sha256(found).hexdigest())
    # No two steps, epochs or orders agree, so the traces above do see them.
    assert len(hashes) == NUM_STEPS * len(ORDERS)


def run_until_killed(directory: str, order: str, last_step: str, out: str) -> None:
    """Notes each step and the state after it, and waits in the middle until it is killed."""
    steps = Steps(SampleIndex.open(directory), order=order, num_ranks=2, chunk=2, num_workers=2)
    with Path(out).open("w", encoding="utf-8") as file:
        for number, step in enumerate(steps, start=1):
            line = {"hash": hashlib.sha256(step).hexdigest(), "state": steps.state_dict()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            if number == int(last_step):
                print("there", flush=True)
                sys.stdin.read()


@pytest.mark.parametrize(
    ("order", "kill_after", "num_ranks"), [(ORDERS[0], 4, 3), (ORDERS[2], 2, 8)]
)
def test_killed_run_goes_on_with_another_number_of_ranks(
    photos: SampleIndex, tmp_path: Path, order: str, kill_after: int, num_ranks: int
) -> None:
    expected = [
        hashlib.sha256(step).hexdigest()
        for step in Steps(photos, order=order, num_ranks=1, chunk=3, num_workers=0)
    ]
    out, here = tmp_path / "steps.jsonl", Path(__file__).parent
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, test_data_loading_one_order as test; test.run_until_killed(*sys.argv[1:])",
            str(photos.directory),
            order,
            str(kill_after),
            str(out),
        ],
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
    assert len(lines) == kill_after
    resumed = Steps(photos, order=order, num_ranks=num_ranks, chunk=3, num_workers=0)
    resumed.load_state_dict(lines[-1]["state"])
    found = [line["hash"] for line in lines]
    found += [hashlib.sha256(step).hexdigest() for step in resumed]
    assert found == expected
