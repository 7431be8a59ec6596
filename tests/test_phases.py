"""Hybrid training: phases are what separate runs that hand over their state would be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_models import build_model, mini_batch
from engine_runs import ADAMW, Run, engine_for, outcome_of, own_part, relative_difference, settings
from layouts import LAYOUTS
from rank_pool import OnRanks
from saved_state import Held, optimizer_state_of

from msam_scale.config import ConfigError, load_config
from msam_scale.phases import Phases

_PHASES = [
    {"until": 0.25, "algorithm": "vanilla"},
    {"until": 0.5, "algorithm": "sam"},
    {"until": 0.75, "algorithm": "msam"},
]
_NUM_STEPS = 8
_MODEL = "odd, all of it used"


def _config(**arguments: Any) -> dict[str, Any]:
    """Vanilla, SAM, mSAM and vanilla again, two steps each."""
    config = settings(micro_batches=4, optimizer=ADAMW, **arguments)
    config["objective"] |= {"algorithm": "vanilla", "phases": _PHASES}
    config["training"] = {"steps": _NUM_STEPS}
    return config


def _one_after_the_other(precision: str) -> dict[str, torch.Tensor]:
    """The same with an engine for each phase, which takes the state of the one before."""
    weights, state = None, None
    for number, algorithm in enumerate(["vanilla", "sam", "msam", "vanilla"]):
        micro_batches = None if algorithm == "sam" else 4
        config = settings(
            algorithm=algorithm, micro_batches=micro_batches, optimizer=ADAMW, precision=precision
        )
        engine = engine_for(Run(config, model=_MODEL))
        if weights is not None and state is not None:
            engine._sharding.load(Held(weights), state)
        engine.num_steps_done = 2 * number
        for step in range(2 * number, 2 * number + 2):
            batch = own_part(engine, mini_batch(step, dtype=engine._precision.parameters))
            engine.train_step(batch)
        weights, state = engine.full_state_dict(), optimizer_state_of(engine)
    assert weights is not None
    return weights


def test_phases_are_runs_that_hand_over_their_state() -> None:
    outcome = outcome_of(Run(_config(), model=_MODEL, steps=_NUM_STEPS))
    expected = _one_after_the_other("float64")
    assert all(outcome.state[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("row", LAYOUTS)
def test_no_layout_changes_a_hybrid_run(row: str, on_ranks: OnRanks) -> None:
    """With replicated parameters SAM takes all ranks for a perturbation, and mSAM one for each."""
    layout = LAYOUTS[row]
    expected = _one_after_the_other("float64")
    start = build_model(_MODEL).state_dict()
    run = Run(
        _config(precision=layout.precision, **layout.sharding), model=_MODEL, steps=_NUM_STEPS
    )
    state = on_ranks(4, outcome_of, run)[0].state
    bound = 1e-12 if layout.precision == "float64" else 1e-4
    error = relative_difference(state, expected=expected, start=start)
    assert error < bound
    for algorithm in ("vanilla", "msam"):  # one algorithm throughout is another run
        config = settings(algorithm=algorithm, micro_batches=4, optimizer=ADAMW)
        other = outcome_of(Run(config, model=_MODEL, steps=_NUM_STEPS)).state
        assert relative_difference(other, expected=expected, start=start) > 10 * bound


def _resumed(config: dict[str, Any], folder: str, stop: int) -> bool:
    """Whether a run that stopped after so many steps goes on bit for bit."""
    whole = outcome_of(Run(config, model=_MODEL, steps=_NUM_STEPS)).state
    engine = engine_for(Run(config, model=_MODEL))
    for step in range(stop):
        engine.train_step(own_part(engine, mini_batch(step, dtype=torch.float64)))
    engine.save_checkpoint(folder)
    engine = engine_for(Run(config, model=_MODEL))
    engine.load_checkpoint(folder)
    for step in range(stop, _NUM_STEPS):
        engine.train_step(own_part(engine, mini_batch(step, dtype=torch.float64)))
    return all(whole[name].equal(value) for name, value in engine.full_state_dict().items())


@pytest.mark.parametrize("stop", [2, 3, 4, 6])
def test_a_resume_on_and_beside_a_switch_is_exact(
    stop: int, tmp_path: Any, on_ranks: OnRanks
) -> None:
    assert all(on_ranks(2, _resumed, _config(), str(tmp_path), stop))


def test_a_phase_ends_with_the_step_at_its_fraction() -> None:
    config = load_config(
        {
            "batch": {"size": 8},
            "objective": {
                "micro_batches": 4,
                "phases": [
                    {"until": 0.1, "algorithm": "vanilla"},
                    {"until": 0.45, "algorithm": "sam"},
                ],
            },
        }
    )
    phases = Phases(config, world_size=2, num_steps=30)
    found = [phases.algorithm(step) for step in range(30)]
    assert found == ["vanilla"] * 3 + ["sam"] * 11 + ["msam"] * 16
    assert [phases.plan(step).micro_batches for step in (0, 3, 14)] == [4, 1, 4]
    assert phases.stretches(5, 30) == [range(5, 14), range(14, 30)]
    assert phases.stretches(30, 30) == [range(30, 30)]


@pytest.mark.parametrize(
    ("objective", "complaint"),
    [
        (
            {"phases": [{"until": 0.5, "algorithm": "sam"}, {"until": 0.5, "algorithm": "msam"}]},
            r"phases\[1\].until: 0.5 is not after",
        ),
        (
            {"algorithm": "vanilla", "phases": [{"until": 0.5, "algorithm": "msam"}]},
            "micro_batches: is missing, and a phase: msam needs it",
        ),
        (
            {
                "algorithm": "vanilla",
                "rho": 0.1,
                "phases": [{"until": 0.5, "algorithm": "vanilla"}],
            },
            "rho: 0.1 has no effect",
        ),
    ],
)
def test_phases_that_cannot_be(objective: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config({"batch": {"size": 8}, "objective": {"micro_batches": None, **objective}})


def test_phases_need_the_number_of_steps() -> None:
    config = _config()
    del config["training"]
    with pytest.raises(ValueError, match=r"objective\.phases: are fractions of all steps"):
        engine_for(Run(config, model=_MODEL))
