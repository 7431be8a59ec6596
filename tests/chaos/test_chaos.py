"""SIGKILL during saves of real ranks loses nothing: a sample of `python -m tests.chaos`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from live_runs import LiveRanks
from rank_pool import OnRanks
from runs_on_ranks import train
from saved_state import checkpoint_tensors, rewrite_tensors

from msam_scale.checkpoint import step_folders
from tests.chaos import killed_rank
from tests.chaos.job import Job, assert_same_weights

_NUM_STEPS = 12
# A file is half written; a folder has its name and is not `latest` yet; one that is not kept any
# more is half gone. Of each start it is the second save.
_STAGES = ("during data", "before latest", "during deletion")


@pytest.mark.layouts
def test_a_killed_job_ends_as_one_that_nobody_disturbed(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, on_ranks: OnRanks
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").symlink_to(digits)
    whole, killed = (Job(tmp_path, name=name, num_steps=_NUM_STEPS) for name in ("whole", "killed"))
    on_ranks(2, train, str(whole.config), str(tmp_path), [])
    before = 0
    for number, stage in enumerate(_STAGES):
        asynchronous = f"checkpoint.async={str(number == 0).lower()}"
        ranks = LiveRanks(
            str(killed.config),
            asynchronous,
            "monitor.progress=true",
            before=partial(killed_rank.arm, f"{stage}:rank:2"),
        )
        try:
            ranks.wait_for_text("KILLED")
        finally:
            ranks.close()  # as launchers end the others
        assert not before or f"resumed after step {before} of" in ranks.text(), ranks.text()
        after = killed.check()
        assert after > before, "a checkpoint of each start is whole"
        before = after
    assert before < _NUM_STEPS, "it was cut off before its end"
    on_ranks(2, train, str(killed.config), str(tmp_path), [])
    assert_same_weights(whole, killed)
    names = {path.name for path in killed.checkpoints.iterdir()}
    assert names == {"latest", *(folder.name for folder in step_folders(killed.checkpoints))}
    # That the comparison can fail.
    newest = step_folders(killed.checkpoints)[-1]
    tensors = checkpoint_tensors(newest)
    rewrite_tensors(newest, {name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(AssertionError):
        assert_same_weights(whole, killed)
