"""Whole training runs in rank processes that are there already, as a launcher would start them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from msam_scale.ranks import join
from msam_scale.supervision.supervision import Supervision
from msam_scale.training import prepare_run, run_training


def train(
    config: str,
    home: str,
    words: Sequence[str],
    *,
    stop_after: int | None = None,
    dry_run: bool = False,
) -> None:
    """What each rank of a launcher does.

    Args:
        config: path of the config.
        home: the working folder.
        words: overrides.
        dry_run: without a step.
        stop_after: steps after which a stop is asked for, as when the launcher is gone.
    """
    before = Path.cwd()
    os.chdir(home)
    ranks = join()
    prepared = prepare_run(config, overrides=words, world_size=ranks.size)
    supervision = Supervision(prepared.config.faults, code=75)
    supervision.join(ranks)
    if stop_after is not None:
        check, calls = supervision.check, 0

        def checks() -> None:
            nonlocal calls
            calls += 1
            if calls == stop_after:
                supervision.stop.launcher_is_gone()
            check()

        supervision.check = checks  # type: ignore[method-assign]
    try:
        run_training(prepared, ranks=ranks, supervision=supervision, dry_run=dry_run)
    finally:
        supervision.leave()
        supervision.stop.close()  # else the process would end when its grace is over
        os.chdir(before)
