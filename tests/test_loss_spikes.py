"""Losses that stand out from the reported ones before them."""

from __future__ import annotations

from math import inf, nan

from msam_scale.monitoring.loss_spikes import LossSpikes


def _losses(number: int) -> list[float]:
    return [1.0 + 0.01 * (index % 7) for index in range(number)]


def test_a_loss_far_above_the_others_is_a_spike() -> None:
    spikes = LossSpikes(6.0)
    assert [spikes.see(loss) for loss in _losses(30)] == [None] * 30
    assert spikes.see(0.2) is None, "a fall is none"
    words = spikes.see(1.5)
    assert words is not None
    assert words.startswith("loss 1.5 is a spike: the median of the last 31 reported ones is 1.03")
    assert spikes.see(nan) is spikes.see(inf) is None
    assert spikes.figures() == {"loss_spikes": 1}


def test_a_few_losses_are_not_judged() -> None:
    spikes = LossSpikes(6.0)
    assert [spikes.see(loss) for loss in (*_losses(9), 50.0)] == [None] * 10
    assert spikes.see(50.0) is not None


def test_only_the_last_losses_count() -> None:
    spikes = LossSpikes(6.0)
    for loss in _losses(100):
        spikes.see(loss)
    for _ in range(60):
        spikes.see(2.0)
    assert 0 < spikes.count <= 26, "a level that stays becomes the median"
    assert spikes.see(2.0) is None


def test_a_loss_that_has_settled_may_ripple() -> None:
    spikes = LossSpikes(6.0)
    assert [spikes.see(loss) for loss in [1.0] * 20 + [1.005]] == [None] * 21
    assert spikes.see(1.01) is not None


def test_a_resumed_run_finds_the_same() -> None:
    losses = [*_losses(60), 3.0, *_losses(5), 4.0]
    whole, before, after = LossSpikes(6.0), LossSpikes(6.0), LossSpikes(6.0)
    expected = [whole.see(loss) for loss in losses]
    found = [before.see(loss) for loss in losses[:63]]
    after.load(before.state())
    assert [*found, *(after.see(loss) for loss in losses[63:])] == expected
    assert after.count == whole.count == 2
    after.load(None)
    assert after.state() == LossSpikes(6.0).state()


def test_without_a_factor_nothing_is_looked_for() -> None:
    spikes = LossSpikes(None)
    assert [spikes.see(loss) for loss in (*_losses(20), 1e9)] == [None] * 21
    assert spikes.figures() == {}
