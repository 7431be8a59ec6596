"""Settings that do nothing beside certain others: refused, because their author expects an effect.

A setting that is at its default is fine: a written-out config holds all of them. So is a file's
beside an override that takes its effect away (`data.val=null`): `load` then leaves it out and says
so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msam_scale.config.check_registry import Check
from msam_scale.config.describe import shown
from msam_scale.config.keys import default_of
from msam_scale.config.problems import Problem


@dataclass(frozen=True)
class _WithoutEffect:
    """`key` does nothing while `beside` has `value`."""

    key: str
    beside: str
    value: object

    def as_check(self) -> Check:
        return Check(self._find, reads={"given": self.key, "other": self.beside})

    def _find(self, *, given: object, other: object) -> Iterator[Problem]:
        if other == self.value and given != default_of(self.key):
            because = f"with {self.beside}: {other}" if other else f"without {self.beside}"
            message = f"{shown(given)} has no effect {because}; leave it out"
            yield Problem(self.key, message, idle_beside=self.beside)


WITHOUT_EFFECT = [
    rule.as_check()
    for rule in (
        _WithoutEffect("objective.max_skipped_steps", beside="objective.non_finite", value="abort"),
        _WithoutEffect(
            "objective.max_skipped_steps", beside="objective.non_finite", value="rollback"
        ),
        _WithoutEffect("objective.max_rollbacks", beside="objective.non_finite", value="skip"),
        _WithoutEffect("objective.max_rollbacks", beside="objective.non_finite", value="abort"),
        _WithoutEffect("training.eval_every", beside="data.val", value=None),
        _WithoutEffect("training.metrics", beside="data.val", value=None),
        _WithoutEffect("monitor.sharpness_samples", beside="monitor.sharpness_every", value=None),
        _WithoutEffect("checkpoint.async", beside="checkpoint.every", value=None),
        _WithoutEffect("data.cache_limit", beside="data.cache_dir", value=None),
        _WithoutEffect("data.max_bad_samples", beside="data.on_error", value="raise"),
        _WithoutEffect("sharding.shard_group", beside="sharding.strategy", value="replicated"),
        _WithoutEffect("sharding.shard_group", beside="sharding.strategy", value="zero1"),
        _WithoutEffect("sharding.shard_group", beside="sharding.strategy", value="zero2"),
        _WithoutEffect("sharding.deepspeed", beside="sharding.strategy", value="replicated"),
        _WithoutEffect("sharding.deepspeed", beside="sharding.strategy", value="fsdp"),
        _WithoutEffect("sharding.offload", beside="sharding.strategy", value="replicated"),
    )
]
