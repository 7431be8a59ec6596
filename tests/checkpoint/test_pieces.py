"""Ranges, boxes and shares: every element of a tensor is in exactly one."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from msam_scale.sharding.pieces import Piece, boxes, share_of

_SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(shape=_SHAPES, data=st.data())
def test_boxes_are_the_range_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    total = math.prod(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    if start == stop and total:
        return  # nothing is never saved
    whole = torch.arange(total).view(shape)
    found = list(boxes(shape, start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)
    parts = []
    for offsets, sizes in found:
        box = whole[
            tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
        ]
        assert tuple(box.shape) == tuple(sizes)
        parts.append(box.reshape(-1))
    assert torch.cat(parts).tolist() == list(range(start, stop))


@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([torch.float64, torch.uint8]))),
    count=st.integers(1, 5),
)
def test_shares_are_a_partition(sizes: list[tuple[int, torch.dtype]], count: int) -> None:
    pieces = [
        Piece.whole(f"p{index}", torch.arange(size, dtype=dtype))
        for index, (size, dtype) in enumerate(sizes)
    ]
    shares = [list(share_of(pieces, index=index, count=count)) for index in range(count)]
    found = [piece for share in shares for piece in share if piece.values.numel()]
    for piece in pieces:
        own = [part for part in found if part.name == piece.name]
        assert sum(part.values.numel() for part in own) == piece.values.numel()
        assert all(part.values.tolist()[0] == part.start for part in own)
    total = sum(piece.num_bytes for piece in pieces)
    for share in shares:
        assert abs(sum(piece.num_bytes for piece in share) - total / count) <= 8
    named = {piece.name for share in shares for piece in share}
    assert named == {piece.name for piece in pieces}, "empty tensors are saved as well"
