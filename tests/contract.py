"""What every layout owes a run, done once on its ranks: one engine, and all that may befall it.

The engine begins with a checkpoint that a single process has saved, and trains on. In between it is
evaluated, steps overflow on one rank, a loss raises at w + ε, the averaged weights are looked at,
and the run goes back to a checkpoint of its own. Each of these has to leave no trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from engine_models import build_model, cross_entropy, mini_batch
from engine_runs import ADAMW, Run, engine_for, own_part, settings
from faults import replaced
from saved_state import optimizer_state_of

from msam_scale.engine import Engine

State = Mapping[str, torch.Tensor]

MODEL = "odd, all of it used"
MICRO_BATCHES = 4
DECAY = 0.8
# Between the norms of the gradients: some are clipped, and some are left as they are.
CLIP_NORM = 0.5
# Steps of the single process, and of the layout until it saves.
STEPS_BEFORE, STEPS_AFTER = 2, 3
# Of the bad steps the last rank's first forward, at w, or its last one, at w + ε, overflows.
BAD_PASSES = ("ascent", "descent")


@dataclass(frozen=True)
class Row:
    """A layout in one precision.

    Attributes:
        sharding: the config's section.
        precision: of the computation.
        size: W.
        leaves_unused: whether ranks may leave different parameters without a gradient.
    """

    sharding: dict[str, Any]
    precision: str
    size: int = 2
    leaves_unused: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def config(self, **over: Any) -> dict[str, Any]:
        """For `initialize`."""
        config = settings(
            micro_batches=MICRO_BATCHES,
            chunk=3,
            optimizer=ADAMW,
            clip_norm=CLIP_NORM,
            precision=self.precision,
            **{**self.sharding, **over},
        )
        training: dict[str, Any] = {"ema": DECAY}
        if self.precision == "float16":
            training["loss_scale"] = {"initial_power": 8, "hysteresis": 1}
        return config | {"training": training}


def _zero3(*, size: int = 2, precision: str = "float32", **sharding: Any) -> Row:
    return Row({"strategy": "zero3", **sharding}, precision, size, leaves_unused=False)


def _zero_options(**options: Any) -> dict[str, Any]:
    return {"zero_optimization": options}


ROWS: dict[str, Row] = {
    "replicated": Row({"strategy": "replicated"}, "float64"),
    "replicated, bfloat16": Row({"strategy": "replicated"}, "bfloat16"),
    "replicated, float16": Row({"strategy": "replicated"}, "float16"),
    "FSDP": Row({"strategy": "fsdp"}, "float64"),
    "FSDP, bfloat16, offloaded": Row({"strategy": "fsdp", "offload": True}, "bfloat16"),
    "FSDP, float16": Row({"strategy": "fsdp"}, "float16"),
    "hybrid FSDP 2x2": Row({"strategy": "fsdp", "shard_group": 2}, "float64", 4),
    "ZeRO-1": Row({"strategy": "zero1"}, "float32"),
    "ZeRO-1, float16": Row({"strategy": "zero1"}, "float16"),
    "ZeRO-2, offloaded": Row({"strategy": "zero2", "offload": True}, "float32"),
    "ZeRO-2, bfloat16": Row({"strategy": "zero2"}, "bfloat16"),
    # Secondary shards, and nothing that stays gathered.
    "ZeRO-3, hpZ": _zero3(
        deepspeed=_zero_options(zero_hpz_partition_size=2, stage3_param_persistence_threshold=0)
    ),
    "ZeRO-3, bfloat16": _zero3(precision="bfloat16"),
    "ZeRO-3, float16, offloaded in sub-groups": _zero3(
        precision="float16", offload=True, deepspeed=_zero_options(sub_group_size=50)
    ),
    "hybrid ZeRO-3 2x2": _zero3(size=4, shard_group=2),
}


@dataclass(frozen=True)
class WholeState:
    """Weights, optimizer state and average of an engine, unsharded."""

    weights: State
    optimizer: State
    average: State

    @classmethod
    def of(cls, engine: Engine) -> WholeState:
        """As it is now. Collective."""
        average = engine.full_averaged_state_dict()
        return cls(engine.full_state_dict(), dict(optimizer_state_of(engine)), average)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it under the names of a checkpoint."""
        parts = {"model": self.weights, "optimizer": self.optimizer, "average": self.average}
        return {f"{part}/{name}": t for part, state in parts.items() for name, t in state.items()}


def same(one: State, other: State) -> bool:
    """Whether two states are equal, bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@dataclass
class Seen:
    """What a rank saw of a contract.

    Attributes:
        loaded: after the single process's checkpoint was loaded.
        skipped: whether each step was.
        scales: the loss scale after each step, 1 without one.
        figures: loss, gradient norm and ascent norm of each good step.
        lengths: of the perturbation, in the same steps.
        fidelity: of the perturbation, in the step that measures it and in the next one.
        traces: what has left a trace on weights, optimizer, average or predictions.
        averages: after each good step what the average was, and should have been.
        weights: after each good step.
        averaged_prediction: of the model inside `averaged_weights`.
        saved: state and folder of its own checkpoint.
        goes_on: the state after one more step, and again after going back to the checkpoint.
        gathered: types of the parameters while a forward ran.
    """

    loaded: WholeState
    skipped: list[bool] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    figures: list[tuple[float, float, float]] = field(default_factory=list)
    lengths: list[float | None] = field(default_factory=list)
    fidelity: list[float | None] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    weights: list[State] = field(default_factory=list)
    averages: list[State] = field(default_factory=list)
    prediction: torch.Tensor | None = None
    averaged_prediction: torch.Tensor | None = None
    saved: WholeState | None = None
    folder: str = ""
    goes_on: list[WholeState] = field(default_factory=list)
    gathered: set[torch.dtype] = field(default_factory=set)


class _Loss:
    """Cross-entropy that overflows or raises where it is told to."""

    def __init__(self) -> None:
        self.overflows_in: str | None = None
        self.raises_at: int | None = None
        self.gathered: set[torch.dtype] = set()
        self._calls = 0

    def begin_step(self, *, overflows_in: str | None = None, raises_at: int | None = None) -> None:
        self._calls, self.overflows_in, self.raises_at = 0, overflows_in, raises_at

    def __call__(self, model: Any, batch: Any) -> torch.Tensor:
        loss = cross_entropy(model, batch)
        self.gathered.update(parameter.dtype for parameter in model.parameters())
        call, self._calls = self._calls, self._calls + 1
        if self.raises_at == call:
            raise ArithmeticError
        if self.overflows_in == "ascent" and call == 0:
            return loss * float("inf")
        # Of the step's last descent the first chunk: all micro-batches have been perturbed.
        is_last_descent = call == self.num_chunks - self.chunks_a_pass
        if self.overflows_in == "descent" and is_last_descent:
            return loss * float("inf")
        return loss

    def expect(self, engine: Engine) -> None:
        """Counts the forwards of a step."""
        plan, chunk = engine.plan, engine.config.batch.chunk
        assert chunk is not None
        self.chunks_a_pass = -(-plan.slice_size // chunk)
        self.num_chunks = 2 * plan.sequential * self.chunks_a_pass


@contextmanager
def float16_on_a_cpu() -> Iterator[None]:
    """DeepSpeed asks oneDNN for it, which few CPUs have; torch computes it on all."""
    from deepspeed.accelerator import get_accelerator

    with replaced(type(get_accelerator()), "is_fp16_supported", lambda accelerator: True):
        yield


def keep_contract(row: str, canonical: str, folder: str) -> Seen:
    """What this rank sees."""
    is_narrow_zero = ROWS[row].precision == "float16" and "ZeRO-3" in row
    with float16_on_a_cpu() if is_narrow_zero else nullcontext():
        return _keep(ROWS[row], canonical, folder)


def _keep(row: Row, canonical: str, folder: str) -> Seen:
    loss = _Loss()
    model = "odd" if row.leaves_unused else MODEL
    engine = engine_for(Run(row.config(), model=model), loss_fn=loss)
    engine.load_checkpoint(canonical)
    seen = Seen(loaded=WholeState.of(engine))
    loss.expect(engine)
    is_bad_rank = engine.ranks.rank == engine.ranks.size - 1

    def step(number: int, *, bad_pass: str | None = None, **arguments: Any) -> Any:
        loss.begin_step(overflows_in=bad_pass if is_bad_rank else None)
        result = engine.train_step(
            own_part(engine, mini_batch(number, dtype=row.dtype)), **arguments
        )
        seen.skipped.append(result.skipped)
        seen.scales.append(engine._sharding.counters().get("loss_scale", 1.0))
        return result

    def good_step(number: int, **arguments: Any) -> None:
        result = step(number, **arguments)
        seen.figures.append((result.loss, result.grad_norm, result.ascent_norm))
        seen.weights.append(engine.full_state_dict())
        seen.averages.append(engine.full_averaged_state_dict())
        seen.fidelity.append(result.perturbation_fidelity)
        seen.lengths.append(result.perturbation_norm)

    def predict() -> torch.Tensor:
        engine.eval()
        with torch.no_grad():
            predictions: torch.Tensor = engine.predict(mini_batch(9, dtype=row.dtype)[0])
        engine.train()
        return predictions

    @contextmanager
    def leaves_no_trace(what: str) -> Iterator[None]:
        # The first prediction leaves parameters gathered where a layout gathers them.
        before, predictions = WholeState.of(engine).tensors(), predict()
        yield
        if not (predict().equal(predictions) and same(before, WholeState.of(engine).tensors())):
            seen.traces.append(what)

    first = STEPS_BEFORE
    good_step(first, measure_fidelity=True)
    for bad_pass in BAD_PASSES:
        with leaves_no_trace(f"an overflow in the {bad_pass}"):
            step(7, bad_pass=bad_pass)
    good_step(first + 1)
    with leaves_no_trace("an error at w + ε"):
        loss.begin_step(raises_at=loss.chunks_a_pass)
        try:
            engine.train_step(own_part(engine, mini_batch(8, dtype=row.dtype)))
        except ArithmeticError:
            pass
        else:
            seen.traces.append("no error at w + ε")
    with leaves_no_trace("a look at the average"), engine.averaged_weights():
        seen.averaged_prediction = predict()
    good_step(first + 2)
    seen.prediction = predict()
    seen.saved = WholeState.of(engine)
    seen.folder = str(engine.save_checkpoint(folder, extra={"place": [1, 2]}))
    for _ in range(2):
        step(first + STEPS_AFTER)
        seen.goes_on.append(WholeState.of(engine))
        step(7, bad_pass="ascent")  # a loss scale falls, and has to come back
        predict()  # leaves parameters gathered, of which nothing may be left
        if engine.load_checkpoint(folder) != {"place": [1, 2]}:
            seen.traces.append("what else was saved")
        if not predict().equal(seen.prediction):
            seen.traces.append("weights before a checkpoint was loaded")
    seen.gathered = loss.gathered
    return seen


def save_canonical(precision: str, folder: str) -> WholeState:
    """The checkpoint of a single process with replicated parameters, after `STEPS_BEFORE` steps."""
    row = Row({"strategy": "replicated"}, precision)
    engine = engine_for(Run(row.config(), model=MODEL), loss_fn=cross_entropy)
    for number in range(STEPS_BEFORE):
        engine.train_step(mini_batch(number, dtype=row.dtype))
    engine.save_checkpoint(folder)
    return WholeState.of(engine)


def predictions_of(state: State) -> torch.Tensor:
    """A plain model's, in float64."""
    model = build_model(MODEL).double()
    model.load_state_dict(state)
    with torch.no_grad():
        predictions: torch.Tensor = model(mini_batch(9)[0])
    return predictions
