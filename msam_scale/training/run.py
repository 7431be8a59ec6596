"""The training loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from data_pipelines import DevicePrefetcher, MicroBatchLoader
from msam_scale.checkpoint import prune_checkpoints
from msam_scale.flatness.during_training import training_sharpness
from msam_scale.initialization import initialize
from msam_scale.models import model_settings
from msam_scale.monitoring import Monitor
from msam_scale.monitoring.throughput import Throughput, measure_throughput, peak_memory_gib
from msam_scale.precision import PRECISIONS
from msam_scale.ranks import Ranks
from msam_scale.step_summary import StepResult
from msam_scale.training.data import training_loader
from msam_scale.training.evaluation import Evaluation, evaluate
from msam_scale.training.prepare import PreparedRun


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: the run's folder.
        num_steps: steps done over all starts.
        num_steps_now: steps done in this start.
        evaluation: of the final weights, where the config names validation data.
    """

    folder: Path
    num_steps: int
    num_steps_now: int
    evaluation: Evaluation | None


def run_training(prepared: PreparedRun, *, ranks: Ranks) -> Outcome:
    """Trains from the run's checkpoint, or from the start, to the last step. Collective.

    Evaluates and saves on the way as the config says, and once at the end.

    Raises:
        UserError: damaged data, or a model that cannot be trained as asked.
        NonFiniteError: too many steps in a row had gradients that are not finite.
    """
    run = _Run(prepared, ranks=ranks)
    try:
        return run.train()
    finally:
        run.close()


class _Run:
    """One start of a run."""

    def __init__(self, prepared: PreparedRun, *, ranks: Ranks) -> None:
        self._prepared = prepared
        self._config = prepared.config
        self._engine = initialize(
            prepared.model,
            config=self._config,
            loss_fn=prepared.data.task.loss_fn(
                dtype=PRECISIONS[self._config.precision].parameters,
                label_smoothing=self._config.training.label_smoothing,
            ),
            num_steps=prepared.num_steps,
        )
        self._saved_step: int | None = None
        extra: dict[str, Any] = {}
        if prepared.folder.resume_from is not None:
            extra = self._engine.load_checkpoint(prepared.folder.resume_from)
            self._saved_step = self._engine.num_steps_done
        self._first_step = self._engine.num_steps_done
        self._stretches = self._engine.stretches(prepared.num_steps)
        self._loader = self._make_loader(self._stretches[0], state=extra.get("loader"))
        self._lock: IO[bytes] | None = None
        ranks.on_first(self._start_folder)
        self._monitor = Monitor(
            self._config,
            folder=prepared.folder.path,
            first_step=self._first_step,
            num_steps=prepared.num_steps,
            speaks=ranks.is_first,
        )
        self._throughput = self._measure_throughput()
        self._evaluation: Evaluation | None = None

    def train(self) -> Outcome:
        """The loop over steps."""
        engine, config, num_steps = self._engine, self._config, self._prepared.num_steps
        eval_every = config.training.eval_every or self._prepared.steps_per_epoch
        sharpness_every = (config.monitor.sharpness_every or 0) * self._prepared.steps_per_epoch
        if self._first_step:
            self._monitor.say(f"resumed after step {self._first_step} of {num_steps}")
        engine.train()
        for number, stretch in enumerate(self._stretches):
            if number:
                found = list(self._loader.bad_samples)
                self._loader = self._make_loader(stretch, state=None)
                self._loader.bad_samples.merge(found)
                self._throughput = self._measure_throughput()
            batches = iter(DevicePrefetcher(self._loader, device=engine.ranks.device))
            for step in range(stretch.start + 1, stretch.stop + 1):
                learning_rate, ascends = engine.learning_rate, engine.algorithm != "vanilla"
                reports = step % config.monitor.every == 0 or step == num_steps
                result = engine.train_step(batches, measure_fidelity=reports)
                self._throughput.count()
                self._monitor.advance()
                if reports:
                    self._report(result, learning_rate, ascends=ascends)
                if step % eval_every == 0 and step < num_steps:
                    self._evaluate()
                if sharpness_every and step % sharpness_every == 0:
                    self._measure_sharpness()
                if config.checkpoint.every and step % config.checkpoint.every == 0:
                    self._save()
        self._evaluate()
        self._save()
        return Outcome(
            folder=self._prepared.folder.path,
            num_steps=engine.num_steps_done,
            num_steps_now=engine.num_steps_done - self._first_step,
            evaluation=self._evaluation,
        )

    def close(self) -> None:
        """Closes the reports and leaves the run's folder to others."""
        self._monitor.close()
        if self._lock is not None:
            self._lock.close()

    def _start_folder(self) -> None:
        self._lock = self._prepared.folder.start(self._config)

    def _report(self, result: StepResult, learning_rate: float, *, ascends: bool) -> None:
        ascent: dict[str, float] = {}
        if ascends:
            ascent["ascent_norm"] = result.ascent_norm
            if (fidelity := result.perturbation_fidelity) is not None:
                ascent["perturbation_fidelity"] = fidelity
        self._report_line(
            "train",
            loss=result.loss,
            lr=learning_rate,
            grad_norm=result.grad_norm,
            **ascent,
            skipped_steps=self._engine.skipped_steps.total,
            peak_memory_gib=peak_memory_gib(self._engine.ranks.device),
            **self._throughput.read(),
        )

    def _evaluate(self) -> None:
        if self._prepared.data.val is None:
            return
        self._throughput.pause()
        self._evaluation = evaluate(self._engine, self._prepared.data)
        if self._engine.num_steps_done > self._first_step:  # else an earlier start has reported it
            self._report_line(
                "val",
                loss=self._evaluation.loss,
                **self._evaluation.metrics,
                samples=self._evaluation.samples,
            )
        self._throughput.resume()

    def _measure_sharpness(self) -> None:
        self._throughput.pause()
        found, error = training_sharpness(self._engine, self._prepared.data)
        self._report_line("train", sharpness=found, sharpness_error=error)
        self._throughput.resume()

    def _save(self) -> None:
        if self._saved_step == self._engine.num_steps_done:
            return
        self._throughput.pause()
        folder = self._prepared.folder
        extra = {
            "data_fingerprint": self._prepared.data.train.index.fingerprint,
            "loader": self._loader_state(),
            "task": self._prepared.data.task.description(),
            "model_settings": model_settings(self._engine.module),
        }
        self._engine.save_checkpoint(folder.checkpoints, extra=extra)
        self._saved_step = self._engine.num_steps_done
        self._engine.ranks.on_first(
            lambda: prune_checkpoints(folder.checkpoints, keep=self._config.checkpoint.keep)
        )
        self._throughput.resume()

    def _report_line(self, split: str, **figures: float | int) -> None:
        step = self._engine.num_steps_done
        epoch = step / self._prepared.steps_per_epoch
        self._monitor.report(step=step, epoch=epoch, split=split, **figures)

    def _make_loader(self, steps: range, *, state: dict[str, Any] | None) -> MicroBatchLoader:
        return training_loader(
            self._prepared.data,
            self._config,
            plan=self._engine.plan,
            rank=self._engine.ranks.rank,
            steps=steps,
            state=state,
        )

    def _loader_state(self) -> dict[str, Any]:
        """The same on all ranks: the damaged samples that any of them has met are in it."""
        ranks, bad_samples = self._engine.ranks, self._loader.bad_samples
        if self._config.data.on_error == "substitute" and ranks.world is not None:
            found: list[list[Any]] = [[] for _ in range(ranks.size)]
            dist.all_gather_object(found, list(bad_samples), group=ranks.world)
            for others in found:
                bad_samples.merge(others)
        return self._loader.state_dict(steps_done=self._engine.num_steps_done)

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
