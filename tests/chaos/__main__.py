"""Kills real training jobs with SIGKILL, again and again, and looks whether anything is lost.

    python -m tests.chaos --kills 200

Jobs on two ranks, under each launcher and with several strategies, are killed (a rank, all ranks,
or the launcher; while they start, at every stage of a save, in an evaluation, at the end, and at
random moments) and started again, until they have been killed so many times; then they may finish.
After each kill every checkpoint has to be intact and no process may be left; a start goes on from
the newest checkpoint, and in the end the weights have to be those of a job that nobody disturbed,
bit for bit.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipelines import prepare
from tests.chaos.job import Job, Kill, Setting, assert_same_weights, finish, kill_and_look
from tests.chaos.killed_rank import STAGES

_SETTINGS = (
    Setting("torchrun", ("sharding.strategy=replicated", "training.ema=0.9")),
    Setting("msam-scale", ("sharding.strategy=fsdp", "checkpoint.async=true")),
    Setting("deepspeed", ("sharding.strategy=zero2", "data.workers=1")),
    Setting("torchrun", ("sharding.strategy=zero3",)),
    Setting("msam-scale", ("sharding.strategy=replicated", "data.workers=1")),
    Setting("deepspeed", ("sharding.strategy=fsdp",)),
)
_VICTIMS = ("rank", "all", "launcher")
_SECONDS_OF_A_START = 10.0


def kills(*, seed: int) -> Iterator[Kill]:
    """Every stage with every victim, between them as many moments of starts and of training."""
    chance = random.Random(seed)
    stages = [stage for stage in STAGES if stage != "end"]
    while True:
        for stage, who in itertools.product(stages, _VICTIMS):
            yield Kill(stage, who)
            yield Kill("start", chance.choice(_VICTIMS), chance.uniform(0, _SECONDS_OF_A_START))
            yield Kill("random", chance.choice(_VICTIMS), chance.uniform(0, 0.5))


def main() -> None:
    """Kills, and prints what was killed how often."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    longest = 0.0
    source = kills(seed=arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare("digits", out=home / "digits")
        for place, setting in enumerate(_SETTINGS):
            first, last = (arguments.kills * i // len(_SETTINGS) for i in (place, place + 1))
            num_steps = 25 * (last - first)
            whole, killed = (
                Job(home, name=f"{name}-{place}", num_steps=num_steps, setting=setting)
                for name in ("whole", "killed")
            )
            finish(whole)
            for number in range(first, last):
                kill = Kill("end", "all") if number == last - 1 else next(source)
                step, seconds = kill_and_look(killed, kill)
                counts[f"{kill.who}, {kill.stage}"] += 1
                longest = max(longest, seconds)
                print(
                    f"{number + 1:4}  {setting.launcher}, {setting.words[0]}: {kill.who} killed at "
                    f"{kill.stage}; newest checkpoint: step {step}; gone after {seconds:.1f} s",
                    flush=True,
                )
            finish(killed)
            assert_same_weights(whole, killed)
    for name, count in sorted(counts.items()):
        print(f"{count:4}  {name}")
    print(
        f"{sum(counts.values())} kills, all resumed; the final weights are bit-identical; nothing "
        f"was left {longest:.1f} s after the launcher's end"
    )


if __name__ == "__main__":
    main()
