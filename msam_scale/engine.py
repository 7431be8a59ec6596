"""The engine: one mini-batch in, one optimizer step of vanilla training, SAM or mSAM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.ascent import ascent_rule
from msam_scale.batch_plan import BatchPlan
from msam_scale.batch_tree import Batch, narrow, num_samples, with_samples_marked
from msam_scale.checkpoint import (
    CheckpointWriter,
    PendingCheckpoint,
    load_checkpoint,
    snapshot_of,
    start_from_checkpoint,
)
from msam_scale.config import Config
from msam_scale.flatness.engine_sharpness import engine_sharpness
from msam_scale.layers import PassContext
from msam_scale.layers.generators import Generators
from msam_scale.layers.keyed_dropout import keep_out_of_compiled_code
from msam_scale.layers.running_statistics import RunningStatistics
from msam_scale.layers.spectral_norm import SpectralVectors
from msam_scale.losses import LossFunction
from msam_scale.micro_batch import MicroBatch
from msam_scale.model_checks import TrainingMode
from msam_scale.optimization import GroupSettings, SkippedSteps
from msam_scale.passes import Passes
from msam_scale.phases import Phases
from msam_scale.precision import Precision
from msam_scale.ranks import Ranks
from msam_scale.sharding import Sharding
from msam_scale.split_check import SplitCheck
from msam_scale.step import Objective, run_step
from msam_scale.step_summary import StepResult, StepSummary
from msam_scale.weight_average import WeightAverage


class Engine:
    """Trains a model with the configured objective. Made by `msam_scale.initialize`.

    Attributes:
        module: the model, trained in place.
        config: what was asked for.
        ranks: this process's place among all.
        num_steps_done: optimizer steps done, skipped ones included.
        skipped_steps: the count of skipped steps.
        average: of the weights, where `training.ema` asks for it.
        whole_state: type and shape of every parameter and buffer, unsharded, as meta tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        config: Config,
        phases: Phases,
        ranks: Ranks,
        precision: Precision,
        sharding: Sharding,
        loss_fn: LossFunction,
        whole_state: Mapping[str, torch.Tensor],
        context: PassContext,
        statistics: RunningStatistics,
        vectors: SpectralVectors,
        schedule: GroupSettings,
    ) -> None:
        self.module = model
        self.config = config
        self.ranks = ranks
        self.num_steps_done = 0
        self.whole_state = whole_state
        # Masks of infinities, such as that of a causal attention.
        self.never_finite = frozenset(
            name
            for name, buffer in model.named_buffers()
            if buffer.is_floating_point() and not bool(buffer.isfinite().all())
        )
        self._precision = precision
        self._sharding = sharding
        self._schedule = schedule
        self._learning_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._phases = phases
        # Every process group is made now: later the store that it takes may be gone, with the
        # launcher that kept it, while a checkpoint can still be saved.
        for plan in (*phases.plans, phases.plan(0)):
            ranks.group_of(plan.group_size)
            sharding.follow_plan(plan)
        self._followed = phases.plan(0)  # by the sharding
        self._loss_fn = loss_fn
        self._ascent = ascent_rule(config.objective.ascent)
        self._context = context
        self._vectors = vectors
        self._mode = TrainingMode(model, speaks=ranks.is_first)
        self._generators = Generators(config.run.seed, device=ranks.device)
        self._split_check = SplitCheck(
            config,
            sharding=sharding,
            loss_fn=loss_fn,
            generators=self._generators,
            precision=precision,
            ranks=ranks,
        )
        self._summary = StepSummary(statistics, ranks=ranks)
        self._passes = Passes(
            loss_fn,
            sharding=sharding,
            context=self._context,
            generators=self._generators,
            precision=precision,
            device=ranks.device,
            summary=self._summary,
            vectors=vectors,
            speaks=ranks.is_first,
        )
        self.skipped_steps = SkippedSteps(
            limit=config.objective.max_skipped_steps,
            device=ranks.device,
            policy=config.objective.non_finite,
            speaks=ranks.is_first,
            loss_scale=lambda: sharding.counters().get("loss_scale", 1.0),
        )
        decay = config.training.ema
        self.average = None if decay is None else WeightAverage(sharding, decay=decay)
        self._checkpoints = CheckpointWriter(ranks)
        self._events = None
        if config.monitor.deepspeed_tensorboard is not None and ranks.is_first:
            from msam_scale.monitoring.deepspeed_events import DeepSpeedEvents  # TensorBoard

            self._events = DeepSpeedEvents(
                config.monitor.deepspeed_tensorboard,
                batch_size=config.batch.size,
                every=config.monitor.every,
            )

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of this rank's shards."""
        return self._sharding.optimizer

    @property
    def algorithm(self) -> str:
        """What the next step follows: `vanilla`, `sam` or `msam`."""
        return self._phases.algorithm(self.num_steps_done)

    @property
    def plan(self) -> BatchPlan:
        """Which samples of the next step's mini-batch each rank works on.

        It changes where a phase of `objective.phases` ends.
        """
        return self._phases.plan(self.num_steps_done)

    def stretches(self, num_steps: int) -> list[range]:
        """The steps from the next one to `num_steps`, cut where `plan` may change."""
        return self._phases.stretches(self.num_steps_done, num_steps)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step, of the first parameter group."""
        rate: float = self._schedule(self.num_steps_done)[0]["lr"]
        return rate

    def train_step(
        self, batch: Batch | Iterator[Batch], *, measure_fidelity: bool = False
    ) -> StepResult:
        """One optimizer step on this rank's part of the mini-batch. Collective.

        Args:
            batch: the samples at `plan.positions(rank)` in that order, as a tensor or nested dict,
                list or tuple of tensors whose first dimension is `plan.samples_per_rank`, on any
                device. A list inside it may have one entry a sample, such as a dict of an image's
                boxes; None and other plain values go to the loss as they are. Or an iterator over
                the rank's `plan.sequential` micro-batches, each of `plan.slice_size` samples.
            measure_fidelity: whether to report `perturbation_fidelity`, `perturbation_norm` and
                `alignment`, which reads all weights once more for each micro-batch.

        Returns:
            The figures of the step, equal on all ranks; reading one waits for the device.

        Raises:
            UserError: the batch has another number of samples or micro-batches, or the model has
                the averaged weights.
            NonFiniteError: `objective.max_skipped_steps` steps in a row were skipped.
            NonFiniteStepError: a step was, and `objective.non_finite` is not `skip`. On an
                accelerator it is noticed one step late; `skipped_steps.settle()` looks at once.
        """
        if self.average is not None:
            self.average.check_outside("train_step")
        step, plan = self.num_steps_done, self.plan
        if plan != self._followed:
            self._sharding.follow_plan(plan)
            self._followed = plan
        self._mode.look()
        self._follow_schedule(step)
        self._context.begin_step(step)
        keep_out_of_compiled_code()
        self._generators.begin_step(step)
        with self._vectors.step():
            result = run_step(
                self._micro_batches(batch),
                objective=Objective(
                    ascent=None if self.algorithm == "vanilla" else self._ascent,
                    radius=self.config.objective.radius,
                ),
                plan=plan,
                sharding=self._sharding,
                passes=self._passes,
                summary=self._summary,
                clip_norm=self.config.optimizer.clip_norm,
                measure_fidelity=measure_fidelity,
            )
        self._vectors.settle(result.skip)
        if self.average is not None:
            self.average.update(result.skip)
        self.num_steps_done += 1
        self.skipped_steps.count(result.faults, step=step)
        if self._events is not None:
            self._events.write(
                result, learning_rate=self._learning_rates[0], num_steps_done=self.num_steps_done
            )
        return result

    sharpness = engine_sharpness  # a method, defined there with all that it needs

    def _follow_schedule(self, step: int) -> None:
        groups = self.optimizer.param_groups
        if [group["lr"] for group in groups] != self._learning_rates:
            raise UserError(
                "a learning rate of engine.optimizer was changed from outside: the config's "
                "schedule sets it at every step; change the schedule, and use no other scheduler"
            )
        for group, settings in zip(groups, self._schedule(step), strict=True):
            group.update(settings)
        self._learning_rates = [group["lr"] for group in groups]

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers, unsharded, original names, full precision, as CPU tensors.

        Collective: every rank gets the whole model.
        """
        return self._sharding.full_state_dict()

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the averaged weights; afterwards its own again, bit for bit.

        Collective. For evaluation and saving: a step inside is refused.

        Raises:
            UserError: `training.ema` is not set, or the model has the averaged weights already.
        """
        if self.average is None:
            raise UserError(
                "training.ema: null keeps no average of the weights; a decay, such as 0.9999, does"
            )
        return self.average.in_the_model()

    def full_averaged_state_dict(self) -> dict[str, torch.Tensor]:
        """What `full_state_dict` gives, of the averaged weights and buffers. Collective.

        Raises:
            UserError: as `averaged_weights`.
        """
        with self.averaged_weights():
            return self.full_state_dict()

    def save_checkpoint(
        self,
        directory: str | Path,
        *,
        extra: Mapping[str, Any] | None = None,
        keep: int | None = None,
    ) -> Path:
        """Saves model, optimizer and counters between two steps. Collective.

        Every rank writes its part, at any layout for any layout.

        Args:
            directory: gets a folder `step-…`, in place of an earlier one of this step, and the
                file `latest` that names it.
            extra: what else belongs to the run, as JSON; `load_checkpoint` gives it back.
            keep: how many complete checkpoints stay there; `None`, the default: all.

        Returns:
            The checkpoint's folder, complete and on disk.

        Raises:
            NotWrittenError: a file system refuses, on all ranks alike; what was there is still
                there. It is a UserError.
        """
        return self._checkpoints.write(
            snapshot_of(self, self._sharding, directory=directory, extra=extra, keep=keep)
        )

    def begin_checkpoint(
        self,
        directory: str | Path,
        *,
        extra: Mapping[str, Any] | None = None,
        keep: int | None = None,
    ) -> PendingCheckpoint:
        """As `save_checkpoint`, but goes on when the state is copied to host memory. Collective.

        The copy takes as much memory as this rank's part of a checkpoint, and is kept for the next.
        One checkpoint is written at a time: a second waits for the first.

        Returns:
            Tells how it ended: `result()` waits, and raises what `save_checkpoint` would.
        """
        return self._checkpoints.begin(
            snapshot_of(self, self._sharding, directory=directory, extra=extra, keep=keep)
        )

    def load_checkpoint(self, location: str | Path) -> dict[str, Any]:
        """Goes on where a checkpoint was saved, at any world size.

        Args:
            location: a checkpoint's folder, or a directory whose `latest` names one.

        Returns:
            The `extra` that was saved.

        Raises:
            UserError: no checkpoint, a damaged one (DamagedCheckpointError), or one of another
                model or optimizer.
        """
        self._checkpoints.wait()
        return load_checkpoint(self, self._sharding, location)

    def start_from(self, location: str | Path) -> None:
        """Takes weights and optimizer state of another run, and begins anew with them.

        Step 0 comes next: schedule, data, seed and objective are this run's own, and the average of
        the weights starts at what they are. Collective.

        Args:
            location: a checkpoint's folder, or a directory whose `latest` names one.

        Raises:
            UserError: as `load_checkpoint`.
        """
        self._checkpoints.wait()
        start_from_checkpoint(self, self._sharding, location)

    def close(self) -> None:
        """Writes out what is not on disk yet: a checkpoint beside training, TensorBoard's events.

        The engine can go on after it.
        """
        self._checkpoints.wait()
        if self._events is not None:
            self._events.close()

    def train(self, mode: bool = True) -> None:
        """Puts the model in training mode."""
        self.module.train(mode)

    def eval(self) -> None:
        """Puts the model in evaluation mode."""
        self.module.eval()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the passes compute in, for a forward outside of them."""
        return self._precision.autocast(self.ranks.device)

    def __call__(self, *inputs: Any, **named_inputs: Any) -> Any:
        """The model's forward, outside any pass; collective where `forward_is_collective`."""
        return self._sharding.model(*inputs, **named_inputs)

    def predict(self, *inputs: Any, **named_inputs: Any) -> Any:
        """A forward in the precision that the passes compute in; for evaluation."""
        with self.autocast():
            return self(*inputs, **named_inputs)

    @property
    def forward_is_collective(self) -> bool:
        """Whether ranks wait for each other in a forward: then all must run equally many."""
        return self._sharding.forward_is_collective

    def _micro_batches(self, batch: Batch | Iterator[Batch]) -> Iterator[MicroBatch]:
        plan = self.plan
        chunk_size = self.config.batch.chunk or plan.slice_size
        for turn, part in enumerate(self._parts(batch)):
            self._split_check.look(part, plan)
            if chunk_size >= plan.slice_size:
                # Fits on the device as it is, so both passes share one copy.
                part = self._passes.on_device(part)
            yield MicroBatch(
                batch=part,
                number=plan.micro_batch_of(self.ranks.rank, turn),
                positions=plan.slice_positions(self.ranks.rank, turn),
                is_last=turn == plan.sequential - 1,
                chunk_size=chunk_size,
            )

    def _parts(self, batch: Batch | Iterator[Batch]) -> Iterator[Batch]:
        plan = self.plan
        turns, size = plan.sequential, plan.slice_size
        if not isinstance(batch, Iterator):
            batch = self._checked(batch, plan.samples_per_rank, "train_step's batch")
            yield from (narrow(batch, turn * size, size) for turn in range(turns))
            return
        for turn in range(turns):
            try:
                part = next(batch)
            except StopIteration:
                raise UserError(
                    f"the iterator given to train_step ended after {turn} micro-batches; rank "
                    f"{self.ranks.rank} works on {turns} a step"
                ) from None
            yield self._checked(part, size, f"micro-batch {turn} given to train_step")

    def _checked(self, batch: Batch, expected: int, what: str) -> Batch:
        batch = with_samples_marked(batch, expected)
        if (found := num_samples(batch)) != expected:
            raise UserError(
                f"{what} has {found} samples; rank {self.ranks.rank} supplies {expected} of the "
                f"mini-batch of {self.plan.batch_size} (engine.plan.positions({self.ranks.rank}))"
            )
        return batch
