"""Where the weights that a model starts from may come from."""

from __future__ import annotations

from collections.abc import Iterator

from msam_scale.config.check_registry import Check, check
from msam_scale.config.describe import shown
from msam_scale.config.problems import Problem

WEIGHT_CHECKS: list[Check] = []


@check(WEIGHT_CHECKS, source="model.source", pretrained="model.pretrained")
def _a_library_has_the_weights(*, source: str, pretrained: bool) -> Iterator[Problem]:
    if pretrained and source == "msam_scale":
        yield Problem(
            "model.pretrained",
            "true does not work with model.source: msam_scale, whose models come without weights; "
            "leave it out, or set model.weights to the path of a .safetensors file",
        )


@check(WEIGHT_CHECKS, pretrained="model.pretrained", weights="model.weights")
def _weights_come_from_one_place(*, pretrained: bool, weights: str | None) -> Iterator[Problem]:
    if pretrained and weights is not None:
        yield Problem(
            "model.weights",
            f"{shown(weights)} are other weights than those of model.pretrained: true; "
            "leave one of them out",
        )
