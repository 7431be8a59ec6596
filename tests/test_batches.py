"""The forms in which a mini-batch may come, and what is said about those that do not fit."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import Run, engine_for, own_part, settings
from rank_pool import OnRanks
from torch import nn

from msam_scale.engine import Engine
from msam_scale.errors import UserError
from msam_scale.initialization import initialize


class Named(NamedTuple):
    """Images and labels by name."""

    images: torch.Tensor
    labels: torch.Tensor


Plain = namedtuple("Plain", ["images", "labels"])

# How to wrap a batch, and how loss_fn unwraps it.
FORMS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any], Any]]] = {
    "tuple": (lambda x, y: (x, y), lambda b: b),
    "list": (lambda x, y: [x, y], lambda b: b),
    "dict": (lambda x, y: {"x": x, "y": y}, lambda b: (b["x"], b["y"])),
    "other mapping": (lambda x, y: UserDict({"x": x, "y": y}), lambda b: (b["x"], b["y"])),
    "NamedTuple": (Named, lambda b: (b.images, b.labels)),
    "namedtuple": (Plain, lambda b: (b.images, b.labels)),
    "nested": (
        lambda x, y: {"in": [x, (x,)], "out": {"y": y}},
        lambda b: ((b["in"][0] + b["in"][1][0]) / 2, b["out"]["y"]),
    ),
}


def _engine(unwrap: Callable[[Any], Any] = lambda b: b, **changes: Any) -> Engine:
    config = settings(**{"micro_batches": 4, "chunk": 3, **changes})

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        return cross_entropy(model, unwrap(batch))

    return engine_for(Run(config), loss_fn=loss_fn)


def _state_after(engine: Engine, wrap: Callable[[Any, Any], Any]) -> dict[str, torch.Tensor]:
    for step in range(2):
        engine.train_step(wrap(*mini_batch(step)))
    return engine.full_state_dict()


def _assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_batch_trains_alike(form: str) -> None:
    wrap, unwrap = FORMS[form]
    expected = _state_after(_engine(), lambda x, y: (x, y))
    _assert_same(_state_after(_engine(unwrap), wrap), expected)


def test_a_tensor_alone_is_a_batch() -> None:
    engine = initialize(
        build_model("linear"),
        config=settings(micro_batches=4, chunk=3),
        loss_fn=lambda model, batch: model(batch).square().mean(),
    )
    assert engine.train_step(mini_batch(0)[0]).loss > 0


class WithLoss(nn.Module):
    """Returns an object with `.loss`, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_model("odd")

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.inner(pixels)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(loss=loss, logits=logits)


def test_a_dict_goes_to_a_model_that_returns_its_loss() -> None:
    engine = initialize(WithLoss(), config=settings(micro_batches=4, chunk=3))
    engine.module.load_state_dict(WithLoss().state_dict())
    state = _state_after(engine, lambda x, y: {"pixels": x, "labels": y})
    expected = _state_after(_engine(), lambda x, y: (x, y))
    _assert_same({name.removeprefix("inner."): state[name] for name in state}, expected)
    with pytest.raises(UserError, match="no loss for a batch with the keys pixels; add labels"):
        engine.train_step({"pixels": mini_batch(0)[0]})


def _whole_and_streamed_alike() -> None:
    whole, streamed = _engine(), _engine()
    for step in range(2):
        batch = own_part(whole, mini_batch(step))
        size = whole.plan.slice_size
        parts = (
            tuple(tensor[turn * size : (turn + 1) * size] for tensor in batch)
            for turn in range(whole.plan.sequential)
        )
        one, other = whole.train_step(batch), streamed.train_step(parts)
        assert (one.loss, one.grad_norm) == (other.loss, other.grad_norm)
        assert next(parts, None) is None
    _assert_same(whole.full_state_dict(), streamed.full_state_dict())


@pytest.mark.parametrize("size", [1, 2])
def test_an_iterator_over_micro_batches_is_the_whole_batch(size: int, on_ranks: OnRanks) -> None:
    on_ranks(size, _whole_and_streamed_alike)


def _parts(count: int, size: int) -> Iterator[Any]:
    images, labels = mini_batch(0)
    return iter([(images[:size], labels[:size])] * count)


X, Y = mini_batch(0)
REFUSED: dict[str, tuple[Any, str]] = {
    "too few": ((X[:31], Y[:31]), r"train_step's batch has 31 samples; rank 0 supplies 32"),
    "too many": ((torch.cat([X, X]), torch.cat([Y, Y])), r"has 64 samples; rank 0 supplies 32"),
    "disagree": ((X, Y[:8]), r"disagree.*batch\[0\]: 32, batch\[1\]: 8"),
    "deep": ({"a": [X, {"b": Y[1:]}]}, r"batch\['a'\]\[0\]: 32, batch\['a'\]\[1\]\['b'\]: 31"),
    "no dimension": ((X, torch.tensor(1.0)), r"batch\[1\] has no dimensions"),
    "no tensor": ([], "holds no tensor"),
    "array": ((X, Y.numpy()), r"batch\[1\] is a ndarray; a batch is made of tensors"),
    "number": (3, r"batch is a int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    batch, words = REFUSED[case]
    engine = _engine()
    before = engine.full_state_dict()
    with pytest.raises(UserError, match=words):
        engine.train_step(batch)
    assert engine.num_steps_done == 0
    _assert_same(engine.full_state_dict(), before)
    engine.train_step((X, Y))
    other = _engine()
    other.train_step((X, Y))
    _assert_same(engine.full_state_dict(), other.full_state_dict())


def test_streams_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="ended after 3 micro-batches; rank 0 works on 4 a step"):
        _engine().train_step(_parts(3, 8))
    with pytest.raises(UserError, match="micro-batch 0 given to train_step has 7 samples"):
        _engine().train_step(_parts(4, 7))


def test_the_default_loss_smooths_labels_and_refuses_what_it_cannot_read() -> None:
    config = settings(micro_batches=4) | {"training": {"label_smoothing": 0.2}}
    engine = initialize(build_model("odd"), config=config)
    model = build_model("odd").double()
    expected = F.cross_entropy(model(X), Y, label_smoothing=0.2)
    assert engine.train_step((X, Y)).loss == pytest.approx(float(expected.detach()), rel=1e-12)
    for batch in ((X, Y, Y), X):
        with pytest.raises(UserError, match=r"takes \(inputs, labels\) or a dict"):
            engine.train_step(batch)
    with_loss = initialize(WithLoss(), config=config)
    with pytest.raises(UserError, match=r"training\.label_smoothing: 0\.2 has no effect"):
        with_loss.train_step({"pixels": X, "labels": Y})
