"""Hybrid training, and radii: which steps follow what. `test_one_trajectory.py` has the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import mini_batch
from engine_runs import ADAMW, Run, engine_for, own_part, settings
from rank_pool import OnRanks

from msam_scale.config import Config, ConfigError, load_config
from msam_scale.phases import Phases

_PHASES = [
    {"until": 0.25, "algorithm": "vanilla"},
    {"until": 0.5, "algorithm": "sam"},
    {"until": 0.75, "algorithm": "msam"},
]
_NUM_STEPS = 8
_STOPS = (2, 3, 6)
_MODEL = "odd, all of it used"


def _config(**arguments: Any) -> dict[str, Any]:
    """Vanilla, SAM, mSAM and vanilla again, two steps each."""
    config = settings(micro_batches=4, optimizer=ADAMW, **arguments)
    config["objective"] |= {"algorithm": "vanilla", "phases": _PHASES}
    config["training"] = {"steps": _NUM_STEPS}
    return config


def _resumed(folder: str) -> list[bool]:
    """Whether a run that stopped on a switch, or one step beside it, goes on bit for bit."""
    engine = engine_for(Run(_config(), model=_MODEL))

    def train(start: int) -> dict[str, torch.Tensor]:
        for step in range(start, _NUM_STEPS):
            engine.train_step(own_part(engine, mini_batch(step, dtype=torch.float64)))
            if engine.num_steps_done in _STOPS and not start:
                engine.save_checkpoint(f"{folder}/{engine.num_steps_done}")
        return engine.full_state_dict()

    whole, same = train(0), []
    for stop in _STOPS:
        engine = engine_for(Run(_config(), model=_MODEL))
        engine.load_checkpoint(f"{folder}/{stop}")
        state = train(stop)
        same.append(all(whole[name].equal(state[name]) for name in whole))
    return same


def test_a_resume_on_and_beside_a_switch_is_exact(tmp_path: Path, on_ranks: OnRanks) -> None:
    assert on_ranks(2, _resumed, str(tmp_path)) == [[True] * len(_STOPS)] * 2


def _two_phases(*, until: float) -> Config:
    phases = [
        {"until": until, "algorithm": "vanilla"},
        {"until": 0.45, "algorithm": "sam"},
    ]
    objective = {"micro_batches": 4, "phases": phases}
    return load_config({"batch": {"size": 8}, "objective": objective})


def test_a_phase_ends_with_the_step_at_its_fraction() -> None:
    phases = Phases(_two_phases(until=0.1), world_size=2, num_steps=30)
    found = [phases.algorithm(step) for step in range(30)]
    assert found == ["vanilla"] * 3 + ["sam"] * 11 + ["msam"] * 16
    assert [phases.plan(step).micro_batches for step in (0, 3, 14)] == [4, 1, 4]
    assert phases.stretches(5, 30) == [range(5, 14), range(14, 30)]
    assert phases.stretches(30, 30) == [range(30, 30)]
    phases = Phases(_two_phases(until=0.07), world_size=2, num_steps=100)
    assert phases.stretches(0, 100)[0] == range(7), "0.07 * 100 is a little more than 7"


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


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"micro_batches": 4, "rho": [0.1, 0.2]}, "has 2 radii for objective.micro_batches: 4"),
        ({"algorithm": "sam", "rho": [0.1]}, "sam has one micro-batch"),
        (
            {
                "micro_batches": 2,
                "rho": [0.1, 0.2],
                "phases": [{"until": 0.5, "algorithm": "sam"}],
            },
            "sam has one micro-batch",
        ),
        ({"algorithm": "vanilla", "rho": [0.1]}, "no effect with objective.algorithm: vanilla"),
        ({"micro_batches": 2, "rho": [0.1, -1]}, "objective.rho"),
    ],
)
def test_radii_that_do_not_fit_are_refused(objective: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"batch": {"size": 8}, "objective": objective})
    assert words in str(caught.value)
    assert "objective.rho" in str(caught.value)
