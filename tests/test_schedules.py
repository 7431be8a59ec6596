"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

import pytest
import torch

from msam_scale.errors import UserError
from msam_scale.optimization import SCHEDULES, build_schedule


def _torch_one_cycle(total: int, share: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=total, pct_start=share, cycle_momentum=False
    )
    rates = []
    for step in range(total):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    return rates


@pytest.mark.parametrize("total", [10, 37, 200])
@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 0.77])
def test_one_cycle_is_torchs(total: int, share: float) -> None:
    fraction = build_schedule("one_cycle", warmup=share, num_steps=total)
    expected = _torch_one_cycle(total, share)
    assert [fraction(step) for step in range(total)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_one_cycle_takes_its_warmup_in_steps(steps: int) -> None:
    fraction = build_schedule("one_cycle", warmup=steps, num_steps=10)
    expected = _torch_one_cycle(10, steps / 10)
    assert [fraction(step) for step in range(10)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("warmup", [0, 1, 0.04])
def test_one_cycle_without_a_rise_starts_at_the_peak(warmup: float) -> None:
    fraction = build_schedule("one_cycle", warmup=warmup, num_steps=20)
    assert fraction(0) == pytest.approx(1.0)
    assert fraction(19) == pytest.approx(1 / 25 / 1e4)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_where_schedules_start_peak_and_end(name: str) -> None:
    fraction = build_schedule(name, warmup=5, num_steps=25)
    assert [fraction(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert fraction(5) == 1.0
    ends = {"cosine": (0.5, 0.0), "linear": (0.5, 0.0), "constant": (1.0, 1.0)}
    assert (fraction(15), fraction(25)) == pytest.approx(ends[name])
    plain = build_schedule(name, warmup=0, num_steps=25)
    assert plain(0) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 4, 0.25])
def test_rates_rise_then_fall_and_stay_after_the_end(name: str, warmup: float) -> None:
    fraction = build_schedule(name, warmup=warmup, num_steps=20)
    rates = [fraction(step) for step in range(60)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert all(rate >= 0 for rate in rates)
    assert rates[21:] == [rates[-1]] * 39


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_step_is_a_run(name: str) -> None:
    assert build_schedule(name, warmup=0, num_steps=1)(0) == pytest.approx(1.0)


def test_a_length_is_asked_for_where_it_is_needed() -> None:
    for name, schedule in SCHEDULES.items():
        if schedule.needs_end:
            with pytest.raises(UserError, match=rf"schedule\.name: '{name}' depends on the length"):
                build_schedule(name, warmup=0, num_steps=None)
    with pytest.raises(UserError, match=r"schedule\.warmup: 0\.1 depends on the length"):
        build_schedule("constant", warmup=0.1, num_steps=None)
    assert build_schedule("constant", warmup=4, num_steps=None)(1) == 0.5


@pytest.mark.parametrize("warmup", [10, 11])
def test_a_warmup_as_long_as_the_run_is_refused(warmup: int) -> None:
    with pytest.raises(UserError, match=rf"schedule\.warmup: {warmup} leaves nothing of 10 steps"):
        build_schedule("cosine", warmup=warmup, num_steps=10)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "num_steps"), [(0.1, 25), (0.05, 10), (0.33, 7)])
def test_a_fractional_warmup_never_passes_the_peak(
    name: str, warmup: float, num_steps: int
) -> None:
    schedule = build_schedule(name, warmup=warmup, num_steps=num_steps)
    fractions = [schedule(step) for step in range(num_steps)]
    assert all(0 <= fraction <= 1 for fraction in fractions)
    assert max(fractions) > 0.9
