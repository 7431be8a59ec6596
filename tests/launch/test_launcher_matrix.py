"""Every launcher with every strategy: the metrics are those of ranks that nobody has launched."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_runs import LAUNCHERS, LiveRun, figures
from rank_pool import OnRanks
from runs_on_ranks import train
from test_launchers import CONFIG, FIGURES

pytestmark = [pytest.mark.part("launchers"), pytest.mark.layouts]


@pytest.mark.parametrize("strategy", ["replicated", "fsdp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_metrics_do_not_depend_on_the_launcher(
    launcher: str,
    strategy: str,
    tmp_path: Path,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_ranks: OnRanks,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(CONFIG.replace("DIGITS", str(digits)))
    words = [f"sharding.strategy={strategy}", "training.steps=4"]
    on_ranks(2, train, "small.yaml", str(tmp_path), [*words, "run.name=ranks"])
    run = LiveRun(launcher, "small.yaml", *words, "run.name=launched")
    try:
        assert run.code() == 0, run.text()
        run.wait_until_nothing_is_left()
    finally:
        run.close()
    assert figures("launched", *FIGURES) == figures("ranks", *FIGURES)
