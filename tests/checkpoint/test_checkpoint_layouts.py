"""One format under every sharding: what is saved, who can read it, and that it goes on alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from engine_models import mini_batch
from engine_runs import ADAMW, Run, engine_for, own_part, settings
from faults import replaced
from layouts import LAYOUTS
from rank_pool import OnRanks
from saved_state import checkpoint_tensors, checkpoint_weights, optimizer_state_of

from data_pipelines.errors import UserError
from msam_scale.checkpoint import read_weights
from msam_scale.engine import Engine
from msam_scale.sharding import pieces

_MODEL = "odd, all of it used"


def _config(row: str, *, precision: str) -> dict[str, Any]:
    return settings(micro_batches=4, optimizer=ADAMW, precision=precision, **LAYOUTS[row].sharding)


def _train(engine: Engine, *, start: int, stop: int) -> None:
    for step in range(start, stop):
        batch = mini_batch(step, dtype=engine._precision.parameters)
        engine.train_step(own_part(engine, batch))


def _save_and_resume(config: dict[str, Any], folder: str) -> None:
    """Weights and optimizer state of a resumed engine are those of the one that went on."""
    engine = engine_for(Run(config, model=_MODEL))
    _train(engine, start=0, stop=3)
    saved = engine.save_checkpoint(folder, extra={"place": [1, 2]})
    state, optimizer_state = engine.full_state_dict(), optimizer_state_of(engine)
    if engine.ranks.is_first:
        tensors = checkpoint_tensors(saved)
        assert {n.removeprefix("model/") for n in tensors if n.startswith("model/")} == set(state)
        assert all(torch.equal(tensors[f"model/{name}"], state[name]) for name in state)
        assert optimizer_state
        for name, value in optimizer_state.items():
            assert torch.equal(tensors[f"optimizer/{name}"], value), name
    other = engine_for(Run(config, model=_MODEL))
    assert other.load_checkpoint(folder) == {"place": [1, 2]}
    for one in (engine, other):
        _train(one, start=3, stop=6)
    again, states = other.full_state_dict(), [optimizer_state_of(one) for one in (engine, other)]
    assert all(torch.equal(again[name], value) for name, value in engine.full_state_dict().items())
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


_ROWS = [
    pytest.param(row, precision, id=f"{row}, {precision}")
    for row, layout in LAYOUTS.items()
    for precision in ("float32", "float64")
    if precision == "float32" or layout.precision == "float64"
]


@pytest.mark.parametrize(("row", "precision"), _ROWS)
def test_a_checkpoint_is_the_state_and_resuming_is_exact(
    row: str, precision: str, tmp_path: Path, on_ranks: OnRanks
) -> None:
    size = LAYOUTS[row].sizes[-1] if row.startswith("hybrid") else 2
    on_ranks(size, _save_and_resume, _config(row, precision=precision), str(tmp_path))
    names = {path.name.split("-")[1] for path in tmp_path.glob("step-*/tensors-*")}
    assert len(names) == size, "every rank writes"


def _save(config: dict[str, Any], folder: str) -> dict[str, torch.Tensor]:
    engine = engine_for(Run(config, model=_MODEL))
    _train(engine, start=0, stop=1)
    engine.save_checkpoint(folder)
    return engine.full_state_dict()


@pytest.mark.parametrize("row", ["replicated", "FSDP", "ZeRO-2", "ZeRO-3"])
def test_torchs_own_reader_reads_it(row: str, tmp_path: Path, on_ranks: OnRanks) -> None:
    expected = on_ranks(2, _save, _config(row, precision="float32"), str(tmp_path))[0]
    found = {f"model/{name}": torch.zeros_like(value) for name, value in expected.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        reader = dcp.HuggingFaceStorageReader(str(tmp_path / "step-00000001"))
        dcp.load(found, storage_reader=reader, no_dist=True)
    for name, value in expected.items():
        assert torch.equal(found[f"model/{name}"], value), name


@contextmanager
def _shares_that_leave_something_out() -> Iterator[None]:
    original = pieces.share_of
    with replaced(
        pieces, "share_of", lambda them, **place: list(original(list(them)[1:], **place))
    ):
        yield


def _save_broken(config: dict[str, Any], folder: str) -> None:
    with _shares_that_leave_something_out():
        _save(config, folder)


def test_a_tensor_that_no_rank_saves_is_noticed(tmp_path: Path, on_ranks: OnRanks) -> None:
    on_ranks(2, _save_broken, _config("replicated", precision="float32"), str(tmp_path))
    engine = engine_for(Run(_config("replicated", precision="float32"), model=_MODEL))
    with pytest.raises(ValueError, match="misses"):
        engine.load_checkpoint(tmp_path)
    assert checkpoint_weights(tmp_path / "step-00000001").keys() < engine.full_state_dict().keys()


def _save_with_average(config: dict[str, Any], folder: str) -> list[dict[str, torch.Tensor]]:
    engine = engine_for(Run(config, model=_MODEL))
    _train(engine, start=0, stop=3)
    engine.begin_checkpoint(folder).result()
    average = engine.full_averaged_state_dict()
    assert not all(torch.equal(average[n], value) for n, value in engine.full_state_dict().items())
    _train(engine, start=3, stop=5)
    return [average, engine.full_state_dict(), engine.full_averaged_state_dict()]


def _load_with_average(config: dict[str, Any], folder: str) -> list[dict[str, torch.Tensor]]:
    engine = engine_for(Run(config, model=_MODEL))
    engine.load_checkpoint(folder)
    average = engine.full_averaged_state_dict()
    _train(engine, start=3, stop=5)
    return [average, engine.full_state_dict(), engine.full_averaged_state_dict()]


@pytest.mark.parametrize("row", ["replicated", "FSDP", "ZeRO-2", "ZeRO-3"])
def test_the_average_of_the_weights_comes_back(row: str, tmp_path: Path, on_ranks: OnRanks) -> None:
    config = _config(row, precision="float32") | {"training": {"ema": 0.5}}
    expected = on_ranks(2, _save_with_average, config, str(tmp_path))[0]
    found = on_ranks(2, _load_with_average, config, str(tmp_path))[0]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], value) for name, value in other.items())
    saved = read_weights(tmp_path / "step-00000003", averaged=True)
    assert all(torch.equal(saved[name], value) for name, value in expected[0].items())
    if row == "replicated":
        plain = _config(row, precision="float32")
        folder = _save_plain(plain, str(tmp_path / "plain"))
        with pytest.raises(UserError, match="no average"):
            engine_for(Run(config, model=_MODEL)).load_checkpoint(folder)


def _save_plain(config: dict[str, Any], folder: str) -> str:
    return str(engine_for(Run(config, model=_MODEL)).save_checkpoint(folder))
