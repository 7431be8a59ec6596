"""DeepSpeed's three batch sizes: train_batch_size = micro-batch per GPU × accumulation × ranks.

A mini-batch here is DeepSpeed's train batch, a chunk its micro-batch per GPU. Whichever of the
three is missing is derived as DeepSpeed does it
(https://www.deepspeed.ai/docs/config-json/#batch-size-related-parameters); but a division with a
remainder, which DeepSpeed notices later or not at all, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msam_scale.config.deepspeed.findings import Findings
from msam_scale.config.deepspeed.top_level_keys import BATCH_KEYS
from msam_scale.config.describe import shown

_TRAIN, _CHUNK, _ACCUMULATION = BATCH_KEYS
_UNSETTLES = ("batch.size", "batch.chunk")


def translate_batch_sizes(
    values: Mapping[str, Any], *, world_size: int | None, findings: Findings
) -> None:
    """Derives `batch.size` and `batch.chunk`.

    Args:
        values: the DeepSpeed config's top level.
        world_size: W, ranks; `None`: not known, so that only what holds for every W is checked.
        findings: gets the settings, or what is wrong.
    """
    counts = {}
    for name in BATCH_KEYS:
        value = values.get(name)
        if value is None:  # missing or null: DeepSpeed derives it
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            findings.refuse(name, f"{shown(value)} is not a whole number ≥ 1", unsettles=_UNSETTLES)
            return
        counts[name] = value
    train, chunk, accumulation = (counts.get(name) for name in BATCH_KEYS)
    if train is None:
        _from_chunk(chunk, accumulation or 1, world_size=world_size, findings=findings)
        return
    findings.set("batch.size", train, source=_TRAIN)
    if chunk is not None:
        _check_product(train, chunk, accumulation, world_size=world_size, findings=findings)
        findings.set("batch.chunk", chunk, source=_CHUNK)
    elif accumulation is not None:
        _from_accumulation(train, accumulation, world_size=world_size, findings=findings)
    # With train_batch_size alone a rank's whole share goes through the model at once.


def _from_chunk(
    chunk: int | None, accumulation: int, *, world_size: int | None, findings: Findings
) -> None:
    if chunk is None:
        findings.refuse(
            _TRAIN,
            f"is missing, and so is {_CHUNK}; one of them has to be there",
            unsettles=_UNSETTLES,
        )
        return
    findings.set("batch.chunk", chunk, source=_CHUNK)
    if world_size is None:
        findings.refuse(
            _TRAIN,
            f"is missing, and {_CHUNK}: {chunk} tells it only for a known number of ranks; "
            "give train_batch_size, or --nproc",
            unsettles=_UNSETTLES,
        )
        return
    findings.set("batch.size", chunk * accumulation * world_size, source=_CHUNK)


def _check_product(
    train: int,
    chunk: int,
    accumulation: int | None,
    *,
    world_size: int | None,
    findings: Findings,
) -> None:
    unit = chunk * (accumulation or 1) * (world_size or 1)
    if accumulation is not None and world_size is not None:
        fits, relation = train == unit, "is not"
    else:
        fits, relation = train % unit == 0, "is not a multiple of"
    if fits:
        return
    factors = [f"{_CHUNK} {chunk}"]
    if accumulation is not None:
        factors.append(f"{_ACCUMULATION} {accumulation}")
    if world_size is not None:
        factors.append(f"{world_size} ranks")
    findings.refuse(
        _TRAIN,
        f"{train} {relation} {' × '.join(factors)} = {unit}; give one of the three less, "
        "which is then derived",
        unsettles=_UNSETTLES,
    )


def _from_accumulation(
    train: int, accumulation: int, *, world_size: int | None, findings: Findings
) -> None:
    unit = accumulation * (world_size or 1)
    if train % unit:
        ranks = f" × {world_size} ranks" if world_size is not None else ""
        findings.refuse(
            _ACCUMULATION,
            f"{train} samples of {_TRAIN} cannot be cut evenly into {_ACCUMULATION} "
            f"{accumulation}{ranks} = {unit} parts",
            unsettles=_UNSETTLES,
        )
    elif world_size is not None:
        findings.set("batch.chunk", train // unit, source=_ACCUMULATION)
