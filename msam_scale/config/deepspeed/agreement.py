"""`sharding.deepspeed` beside our own settings: what both decide has to be the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msam_scale.batch_plan import divisors
from msam_scale.config.check_registry import Check
from msam_scale.config.deepspeed.batch_sizes import translate_batch_sizes
from msam_scale.config.deepspeed.fates import Translated
from msam_scale.config.deepspeed.precision import SECTIONS
from msam_scale.config.deepspeed.top_level_keys import BATCH_KEYS, TOP_LEVEL_KEYS
from msam_scale.config.deepspeed.translation import find_settings, handed_on, without_auto
from msam_scale.config.describe import listed, shown
from msam_scale.config.problems import Problem

_SETTING = "sharding.deepspeed"
_COMPARED = sorted(
    {key for fate in TOP_LEVEL_KEYS.values() if isinstance(fate, Translated) for key in fate.into}
    - {_SETTING}
)


def agreement_check(*, world_size: int | None) -> Check:
    """The check that the DeepSpeed section contradicts nothing.

    Args:
        world_size: W, ranks; `None`: not known.
    """

    def find(*, section: Any, offload: bool, **ours: Any) -> Iterator[Problem]:
        values = dict(zip(_COMPARED, (ours[_identifier(key)] for key in _COMPARED), strict=True))
        if isinstance(section, dict):
            yield from _find(section, values, offload=offload, world_size=world_size)

    reads = {_identifier(key): key for key in _COMPARED}
    return Check(find, reads={**reads, "section": _SETTING, "offload": "sharding.offload"})


def _find(
    section: dict[str, Any], values: dict[str, Any], *, offload: bool, world_size: int | None
) -> Iterator[Problem]:
    strategy = values["sharding.strategy"]
    if strategy in ("replicated", "fsdp"):
        return  # it has no effect, which another check tells
    found = find_settings(section, with_zero=True, is_offloaded=offload)
    if any(section.get(key) is not None for key in BATCH_KEYS):
        whole = {"train_batch_size": values["batch.size"], **without_auto(section)}
        translate_batch_sizes(whole, world_size=world_size, findings=found)
    for problem in found.problems:
        yield Problem(f"{_SETTING}.{problem.key}", problem.message)
    for key, theirs in found.settings.items():
        ours, source = values[key], found.names[key]
        if key == "training.loss_scale":
            ours = {name: ours[name] for name in theirs}
        if ours != theirs:
            yield Problem(
                f"{_SETTING}.{source}",
                f"means {key}: {shown(theirs)}, but {key} is {shown(ours)}; make them agree, or "
                "leave it to our own setting",
                related=(key,),
            )
    for name, precision in SECTIONS.items():
        inner = section.get(name)
        is_off = isinstance(inner, dict) and inner.get("enabled") is False
        if is_off and values["precision"] == precision:
            yield Problem(
                f"{_SETTING}.{name}.enabled",
                f"false contradicts precision: {precision}; make them agree",
                related=("precision",),
            )
    yield from _find_in_zero(section, offload=offload, world_size=world_size)


def _find_in_zero(
    section: dict[str, Any], *, offload: bool, world_size: int | None
) -> Iterator[Problem]:
    zero = handed_on(section).get("zero_optimization", {})
    where = f"{_SETTING}.zero_optimization"
    for name in ("offload_optimizer", "offload_param"):
        if offload and zero.get(name, {}).get("device") == "none":
            yield Problem(
                f"{where}.{name}.device",
                "'none' contradicts sharding.offload: true; make them agree",
                related=("sharding.offload",),
            )
    group = zero.get("zero_hpz_partition_size", 1)
    is_group = isinstance(group, (int, float)) and group > 1
    if world_size is not None and is_group and world_size % group:
        sizes = listed([str(size) for size in divisors(world_size)], last="or")
        yield Problem(
            f"{where}.zero_hpz_partition_size",
            f"{group} does not divide {world_size} ranks; {sizes} works",
        )


def _identifier(key: str) -> str:
    return key.replace(".", "__")
