"""Directions of a landscape, and the points along them."""

from __future__ import annotations

import torch
from torch import nn

from msam_scale.flatness.landscape import LandscapeRequest, filter_normalized_direction


def test_each_filter_is_as_long_as_the_one_it_moves() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 5))
    model[2].bias.requires_grad_(False)  # type: ignore[union-attr]
    parts = filter_normalized_direction(model, seed=3).split([54, 3, 3, 3, 20])
    for index, layer in ((0, model[0]), (4, model[2])):
        filters = parts[index].view(len(layer.weight), -1)  # type: ignore[arg-type]
        expected = layer.weight.detach().flatten(1).norm(dim=1)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(filters.norm(dim=1), expected)
    assert not any(part.any() for part in parts[1:4])
    assert filter_normalized_direction(model, seed=3).equal(torch.cat(parts))
    assert not filter_normalized_direction(model, seed=4).equal(torch.cat(parts))


def test_the_weights_themselves_are_in_the_middle() -> None:
    assert LandscapeRequest(num_points=5, radius=0.5).coordinates == [-0.5, -0.25, 0.0, 0.25, 0.5]
