"""A sample of `tests/kill_matrix.py`: SIGKILL during saves of a real job, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_matrix import Job, Kill, assert_same_weights, kill_and_look
from rank_pool import OnRanks
from runs_on_ranks import train
from saved_state import checkpoint_tensors, rewrite_tensors

from msam_scale.checkpoint import step_folders

_NUM_STEPS = 9


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A folder with the digits."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "digits").symlink_to(digits)
    return folder


def test_a_killed_job_ends_as_one_that_nobody_disturbed(home: Path, on_ranks: OnRanks) -> None:
    whole, killed = (Job(home, name=name, num_steps=_NUM_STEPS) for name in ("whole", "killed"))
    on_ranks(2, train, str(whole.config), str(home), [])
    steps = [
        kill_and_look(killed, Kill("during data", "rank"), asynchronous=True, after=0.0),
        kill_and_look(killed, Kill("during latest", "launcher"), asynchronous=False, after=0.0),
    ]
    assert steps == sorted(steps)
    assert steps[-1] < _NUM_STEPS, "it was cut off before its end"
    on_ranks(2, train, str(killed.config), str(home), [])
    assert_same_weights(whole, killed)
    # That the comparison can fail.
    newest = step_folders(killed.checkpoints)[-1]
    tensors = checkpoint_tensors(newest)
    rewrite_tensors(newest, {name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(AssertionError):
        assert_same_weights(whole, killed)
