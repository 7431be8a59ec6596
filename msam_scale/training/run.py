"""The training loop."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipelines import DevicePrefetcher, MicroBatchLoader
from msam_scale.batch_tree import Batch
from msam_scale.config import Config
from msam_scale.errors import NonFiniteStepError, UserError
from msam_scale.initialization import initialize
from msam_scale.models import model_settings
from msam_scale.monitoring import Monitor
from msam_scale.monitoring.loss_spikes import LossSpikes
from msam_scale.monitoring.throughput import Throughput, measure_throughput, peak_memory_gib
from msam_scale.optimization import bind_schedule
from msam_scale.precision import PRECISIONS
from msam_scale.ranks import Ranks
from msam_scale.step_summary import StepResult
from msam_scale.supervision.stop_request import FOLDER_GONE, StopAgreedError
from msam_scale.supervision.supervision import Supervision
from msam_scale.training.data import data_set_description, training_loader
from msam_scale.training.evaluation import Evaluation
from msam_scale.training.measurements import Measurements
from msam_scale.training.prepare import PreparedRun
from msam_scale.training.rollback import Rollbacks
from msam_scale.training.saving import Saver

# That a line names.
_MOST_LAYERS = 5


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: the run's folder.
        num_steps: steps done over all starts.
        num_steps_now: steps done in this start.
        num_steps_planned: steps of the whole run.
        evaluation: of the final weights, where the config names validation data.
        averaged_evaluation: the same of their average, where `training.ema` asks for one.
        checkpoint: the newest one; None for a run that was stopped before it had any.
        stopped_by: what asked it to stop; None for a run that is complete.
    """

    folder: Path
    num_steps: int
    num_steps_now: int
    num_steps_planned: int
    evaluation: Evaluation | None
    averaged_evaluation: Evaluation | None
    checkpoint: Path | None
    stopped_by: str | None


def run_training(
    prepared: PreparedRun, *, ranks: Ranks, supervision: Supervision, dry_run: bool = False
) -> Outcome:
    """Trains from the run's checkpoint, or from the start, to the last step. Collective.

    Evaluates and saves on the way as the config says, and once at the end; or saves and ends when
    it is asked to stop.

    Args:
        prepared: the run.
        ranks: this process's place among all.
        supervision: of this process.
        dry_run: end where the first step would begin, with its mini-batch loaded. Nothing is
            written, and what can be said is.

    Raises:
        UserError: damaged data, or a model that cannot be trained as asked.
        NonFiniteError: more losses or gradients were not finite than `objective` allows.
    """
    with ExitStack() as opened:
        run = _Run(prepared, ranks=ranks, supervision=supervision, opened=opened, dry_run=dry_run)
        return run.train()


def _without_records(config: Config) -> Config:
    """For a run that writes nothing, and says what it does."""
    quiet = {"jsonl": False, "tensorboard": False, "deepspeed_tensorboard": None, "progress": True}
    return config.model_copy(update={"monitor": config.monitor.model_copy(update=quiet)})


class _Run:
    """One start of a run; what it opens is closed with `opened`, however far it comes."""

    def __init__(
        self,
        prepared: PreparedRun,
        *,
        ranks: Ranks,
        supervision: Supervision,
        opened: ExitStack,
        dry_run: bool,
    ) -> None:
        if dry_run:
            prepared = replace(prepared, config=_without_records(prepared.config))
        self._is_dry = dry_run
        self._prepared = prepared
        self._supervision = supervision
        self._config = prepared.config
        self._names = {name for name, _ in prepared.model.named_parameters()}
        loss_fn = prepared.data.task.loss_fn(
            dtype=PRECISIONS[self._config.precision].parameters,
            label_smoothing=self._config.training.label_smoothing,
        )
        with supervision.stop.ending_children():  # DeepSpeed may compile its optimizer
            self._engine = initialize(
                prepared.model,
                config=self._config,
                loss_fn=loss_fn,
                num_steps=prepared.num_steps,
            )
        opened.callback(self._engine.close)
        extra: dict[str, Any] = {}
        self._candidates = prepared.folder.candidates
        if self._candidates.newest is not None:
            extra, self._candidates = self._candidates.load(self._engine)
        elif prepared.folder.start_from is not None:
            self._engine.start_from(prepared.folder.start_from)
        self._first_step = self._engine.num_steps_done
        own = self._candidates.within(prepared.folder.checkpoints)
        self._rollbacks = Rollbacks(
            self._config, checkpoints=own, step=self._first_step, extra=extra
        )
        self._loss_spikes = LossSpikes(self._config.monitor.loss_spike)
        self._loss_spikes.load(extra.get("loss_spikes"))
        self._stretches = self._engine.stretches(prepared.num_steps)
        self._loader = self._make_loader(self._stretches[0], state=extra.get("loader"))
        self._num_hosts = len(set(ranks.gathered(platform.node())))
        self._has_ascended = False
        self._data_set = data_set_description(prepared.data.train)
        self._told = self._changed_validation(extra) if own else []
        self._taken: os.stat_result | None = None  # the run's folder, on the first rank
        if not dry_run:
            ranks.on_first(lambda: self._start_folder(opened))
        self._monitor = Monitor(
            self._config,
            folder=prepared.folder.path,
            first_step=self._first_step,
            num_steps=prepared.num_steps,
            speaks=ranks.is_first,
        )
        opened.callback(self._monitor.close)
        for line in (*prepared.notes, *self._told):
            self._monitor.warn(line)
        self._measurements = Measurements(
            self._engine,
            prepared=prepared,
            supervision=supervision,
            report=self._report_line,
            due=extra.get("due", []),
        )
        opened.callback(self._measurements.close)
        self._saver = Saver(
            self._engine,
            section=self._config.checkpoint,
            directory=prepared.folder.checkpoints,
            resumed=self._candidates.newest,
            extra=extra if own else None,
            saved=self._rollbacks.saved,
        )
        opened.callback(self._saver.settle)
        self._supervision.beat("starting", step=self._first_step)
        self._throughput = self._measure_throughput()

    def train(self) -> Outcome:
        """Trains until the last step is done and saved, or all ranks have agreed to stop."""
        stopped_by = None
        try:
            self._train_to_the_end()
        except StopAgreedError:
            stopped_by = self._supervision.stop.reason
            if not self._is_dry:
                self._save_before_stopping()
        self._check_folder()
        return Outcome(
            folder=self._prepared.folder.path,
            num_steps=self._engine.num_steps_done,
            num_steps_now=self._engine.num_steps_done - self._first_step,
            num_steps_planned=self._prepared.num_steps,
            evaluation=self._measurements.evaluation,
            averaged_evaluation=self._measurements.averaged_evaluation,
            checkpoint=self._saver.newest,
            stopped_by=stopped_by,
        )

    def _start_folder(self, opened: ExitStack) -> None:
        opened.enter_context(self._prepared.folder.start(self._config))
        self._taken = self._prepared.folder.path.stat()
        self._told += self._candidates.put_in_order()
        if (before := self._prepared.folder.num_steps_before) is not None:
            self._told.append(self._longer_than(before))

    def _validation_fingerprint(self) -> str | None:
        val = self._prepared.data.val
        return None if val is None else val.index.fingerprint

    def _changed_validation(self, extra: Mapping[str, Any]) -> list[str]:
        """What to say where the run is evaluated on other data than before."""
        before, now = extra.get("validation_fingerprint"), self._validation_fingerprint()
        if None in (before, now) or before == now:
            return []
        return [
            f"warning: data.val: {self._config.data.val} has other samples than before "
            f"(fingerprint {str(before)[:12]}…, now {str(now)[:12]}…): its figures do not continue "
            "the earlier ones"
        ]

    def _longer_than(self, num_steps: int) -> str:
        """What a greater length means for the learning rate."""
        section, peak = self._config.schedule, self._config.optimizer.lr
        step = self._engine.num_steps_done
        schedule = bind_schedule(section, [{"lr": peak or 1.0}], num_steps=num_steps)
        return (
            f"lengthened from {num_steps} to {self._prepared.num_steps} steps, and the schedule "
            f"with it: the learning rate was {schedule(step - 1)[0]['lr']:.4g} in step {step} and "
            f"is {self._engine.learning_rate:.4g} in step {step + 1}"
        )

    def _starting_words(self) -> str:
        """What starts, in a line."""
        engine, config, plan = self._engine, self._config, self._engine.plan
        parameters = sum(x.numel() for name, x in engine.whole_state.items() if name in self._names)
        weights, anew = self._prepared.folder.start_from, self._prepared.anew
        return (
            f"{config.model.name} ({parameters:,} parameters, "
            f"{self._prepared.data.task.num_classes} classes), {config.sharding.strategy}, "
            f"{config.precision}, ranks: {engine.ranks.size} on {self._num_hosts} host(s) in "
            f"{plan.groups} group(s) of {plan.group_size}; {engine.algorithm}, "
            f"B = {plan.batch_size}, m = {plan.micro_batches}; {self._prepared.num_steps} steps"
            f"{f', weights and optimizer of {weights}' if weights else ''}"
            f"{'; initialised anew: ' if anew else ''}{', '.join(anew[:_MOST_LAYERS])}"
            f"{', …' if len(anew) > _MOST_LAYERS else ''}"
        )

    def _say_first_ascent(self, result: StepResult) -> None:
        """What the first ascent of a start does, so that one that is off is seen at once."""
        objective, plan, alignment = self._config.objective, self._engine.plan, result.alignment
        told = "" if alignment is None else f", {alignment:.3g} of ‖g_j‖ ‖ε‖ more"
        self._monitor.say(
            f"step {self._engine.num_steps_done}, ascent {objective.ascent}: ρ = {objective.rho}, "
            f"mean ‖ε‖ = {result.perturbation_norm:.4g}, mean ‖g_j‖ = {result.ascent_norm:.4g} "
            f"over {plan.micro_batches} micro-batches in {plan.groups} group(s); loss "
            f"{result.loss:.6g} at w, {result.perturbed_loss:.6g} at w + ε{told}"
        )

    def _train_to_the_end(self) -> None:
        """All steps, some of them again after a rollback."""
        self._monitor.say(self._starting_words())
        if self._first_step:
            of_all = f"{self._first_step} of {self._prepared.num_steps}"
            self._monitor.say(f"resumed after step {of_all}")
        self._engine.train()
        self._supervision.start_check()
        if self._is_dry:
            self._load_first_mini_batch()
            return
        if self._rollbacks.lacks_checkpoint:
            self._saver.save_last(self._extra())
        with self._aside():
            self._measurements.catch_up()
        while (bad := self._follow_stretches()) is not None:
            self._go_back(bad)

    def _follow_stretches(self) -> NonFiniteStepError | None:
        """Trains to the last step, or to one that has to be answered by a rollback."""
        try:
            self._take_steps()
        except NonFiniteStepError as error:
            if not self._rollbacks.is_on:
                raise
            return error.with_traceback(None)  # which would keep the loader's processes alive
        return None

    def _batches(self) -> Iterator[Batch]:
        """The micro-batches of this rank, from the next step on."""
        device = self._engine.ranks.device
        return self._supervision.loading(iter(DevicePrefetcher(self._loader, device=device)))

    def _load_first_mini_batch(self) -> None:
        """What this rank supplies of it; none where all steps are done."""
        batches = self._batches()
        loaded = list(itertools.islice(batches, self._engine.plan.sequential))
        shown = len(loaded) * self._engine.plan.slice_size
        self._monitor.say(f"the first mini-batch is there, {shown} samples of it on this rank")

    def _take_steps(self) -> None:
        """The loop over steps."""
        engine, num_steps = self._engine, self._prepared.num_steps
        for number, stretch in enumerate(self._stretches):
            if number:
                self._enter(stretch)
            batches = self._batches()
            for step in range(stretch.start + 1, stretch.stop + 1):
                self._supervision.beat("step", step=step)
                learning_rate, ascends = engine.learning_rate, engine.algorithm != "vanilla"
                reports = step % self._config.monitor.every == 0 or step == num_steps
                is_first_ascent = ascends and not self._has_ascended
                result = engine.train_step(batches, measure_fidelity=reports or is_first_ascent)
                self._throughput.count()
                self._monitor.advance()
                if is_first_ascent:
                    self._has_ascended = True
                    self._say_first_ascent(result)
                if reports:
                    self._report(result, learning_rate, ascends=ascends)
                self._measurements.step_done(step)
                self._supervision.check()
                if self._measurements.due:
                    with self._aside():
                        self._measurements.catch_up()
                if self._saver.is_due():
                    with self._aside():
                        self._saver.save(self._extra())
                self._saver.look()
        engine.skipped_steps.settle()
        self._measurements.evaluate_last()
        self._saver.save_last(self._extra())

    def _enter(self, stretch: range) -> None:
        """Gets ready for steps that follow another plan, or train on other data."""
        found = list(self._loader.bad_samples)
        self._loader = self._make_loader(stretch, state=None)
        self._loader.bad_samples.merge(found)
        self._throughput = self._measure_throughput()

    def _go_back(self, bad: NonFiniteStepError) -> None:
        """Answers a bad step: the steps since the last checkpoint are done again on later data."""
        self._saver.settle()  # which checkpoint is the last must not depend on timing
        back = self._rollbacks.go_back(self._engine, bad)
        step = self._engine.num_steps_done
        self._saver.is_at(step)
        self._measurements.due = list(back.extra.get("due", []))
        self._first_step = min(self._first_step, step)  # what an earlier start did is done again
        self._loss_spikes.load(back.extra.get("loss_spikes"))
        self._monitor.rewind(step)
        self._monitor.say(
            f"step {bad.step + 1}: {bad.fault}; back to step {step}, passing over mini-batches "
            f"{back.passed_over.start + 1} to {back.passed_over.stop} of the data"
        )
        self._monitor.report(
            step=bad.step + 1,
            epoch=(bad.step + 1) / self._prepared.steps_per_epoch,
            split="train",
            rollbacks=self._rollbacks.total,
            data_offset=self._rollbacks.data_offset,
        )
        self._stretches = self._engine.stretches(self._prepared.num_steps)
        self._enter(self._stretches[0])

    def _save_before_stopping(self) -> None:
        if not self._engine.num_steps_done:
            return
        try:
            self._engine.skipped_steps.settle()
        except NonFiniteStepError:
            if not self._rollbacks.is_on:
                raise
            return  # the next start meets it again, and goes back
        self._saver.save_last(self._extra())

    def _folder_is_gone(self) -> bool:
        return self._taken is not None and not self._prepared.folder.is_still(self._taken)

    def _check_folder(self) -> None:
        """Saves once more where the folder was taken away. Collective.

        Raises:
            UserError: it was, and what was in it is not where the run is to keep it.
        """
        if not self._engine.ranks.gathered(self._folder_is_gone())[0]:
            return
        self._saver.is_at(-1)
        self._saver.save_last(self._extra())
        raise UserError(
            f"{self._prepared.folder.path} was removed or renamed while the run was writing to it; "
            f"the state after step {self._engine.num_steps_done} is saved in {self._saver.newest}, "
            "which is all that is there now"
        )

    def _extra(self) -> dict[str, Any]:
        """What belongs to the run beside the engine's state. Collective."""
        self._supervision.beat("saving")
        self._engine.skipped_steps.settle()
        self._saver.settle()  # what is known of earlier checkpoints must not depend on timing
        return {
            "data_fingerprint": self._prepared.data.train.index.fingerprint,
            "validation_fingerprint": self._validation_fingerprint(),
            "loader": self._loader_state(),
            "task": self._prepared.data.task.description(),
            "data_set": self._data_set,
            "model_settings": model_settings(self._engine.module),
            "loss_spikes": self._loss_spikes.state(),
            "due": list(self._measurements.due),
            **self._rollbacks.state(step=self._engine.num_steps_done),
        }

    def _report(self, result: StepResult, learning_rate: float, *, ascends: bool) -> None:
        if self._folder_is_gone():
            self._supervision.stop.request(FOLDER_GONE)
        loss = result.loss
        if (spike := self._loss_spikes.see(loss)) is not None:
            self._monitor.say(f"step {self._engine.num_steps_done}: {spike}")
        ascent: dict[str, float] = {}
        if ascends:
            ascent["ascent_norm"] = result.ascent_norm
            if (fidelity := result.perturbation_fidelity) is not None:
                ascent["perturbation_fidelity"] = fidelity
        self._report_line(
            "train",
            loss=loss,
            **self._loss_spikes.figures(),
            lr=learning_rate,
            grad_norm=result.grad_norm,
            **ascent,
            skipped_steps=self._engine.skipped_steps.total,
            peak_memory_gib=peak_memory_gib(self._engine.ranks.device),
            **self._throughput.read(),
        )

    def _report_line(self, split: str, **figures: float | int) -> None:
        step = self._engine.num_steps_done
        epoch = step / self._prepared.steps_per_epoch
        self._monitor.report(step=step, epoch=epoch, split=split, **figures)

    def _make_loader(self, steps: range, *, state: dict[str, Any] | None) -> MicroBatchLoader:
        offset = self._rollbacks.data_offset
        return training_loader(
            self._prepared.data,
            self._config,
            plan=self._engine.plan,
            rank=self._engine.ranks.rank,
            steps=range(steps.start + offset, steps.stop + offset),
            state=state,
            checkpoint=self._candidates.newest,
        )

    def _loader_state(self) -> dict[str, Any]:
        """The same on all ranks: the damaged samples that any of them has met are in it."""
        bad_samples = self._loader.bad_samples
        if self._config.data.on_error == "substitute":
            for others in self._engine.ranks.gathered(list(bad_samples)):
                bad_samples.merge(others)
        position = self._engine.num_steps_done + self._rollbacks.data_offset
        return self._loader.state_dict(steps_done=position)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        self._throughput.pause()
        yield
        self._throughput.resume()

    def _measure_throughput(self) -> Throughput:
        engine, task = self._engine, self._prepared.data.task
        precision = PRECISIONS[self._config.precision]
        device = engine.ranks.device
        sample = task.blank_batch(device=device)
        return measure_throughput(
            engine,
            lambda: task.logits(engine.predict, sample, dtype=precision.parameters),
            batch_size=engine.plan.batch_size,
            num_passes=1 if engine.algorithm == "vanilla" else 2,
            num_devices=engine.ranks.size,
            device=device,
            compute=precision.compute,
        )
