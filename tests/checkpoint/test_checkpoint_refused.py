"""Checkpoints that an engine does not take: a tensor short, or without the average it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_models import mini_batch
from engine_runs import Run, engine_for, settings
from saved_state import checkpoint_tensors, rewrite_tensors

from data_pipelines.errors import UserError
from msam_scale.engine import Engine


def _engine(**training: Any) -> Engine:
    return engine_for(Run(settings(micro_batches=4) | {"training": training}))


def test_a_tensor_that_no_rank_has_saved_is_noticed(tmp_path: Path) -> None:
    engine = _engine()
    engine.train_step(mini_batch(0))
    folder = engine.save_checkpoint(tmp_path)
    tensors = checkpoint_tensors(folder)
    del tensors["model/scale"]
    rewrite_tensors(folder, tensors)
    with pytest.raises(UserError, match=r"misses \['scale'\]"):
        _engine().load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("taken", "given", "words"),
    [("scale//", None, "lacks the state of scale"), (None, "ghost//", "the state of ghost, which")],
)
def test_the_optimizers_state_is_that_of_the_trained_parameters(
    taken: str | None, given: str | None, words: str, tmp_path: Path
) -> None:
    engine = _engine()
    engine.train_step(mini_batch(0))
    folder = engine.save_checkpoint(tmp_path)
    tensors = checkpoint_tensors(folder)
    if taken is not None:
        tensors = {n: t for n, t in tensors.items() if not n.startswith(f"optimizer/{taken}")}
    if given is not None:
        tensors[f"optimizer/{given}momentum_buffer"] = tensors["model/scale"].clone()
    rewrite_tensors(folder, tensors)
    with pytest.raises(UserError, match=words):
        _engine().load_checkpoint(tmp_path)


def test_a_checkpoint_without_an_average_is_refused_where_one_is_kept(tmp_path: Path) -> None:
    folder = _engine().save_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no average"):
        _engine(ema=0.5).load_checkpoint(folder)
