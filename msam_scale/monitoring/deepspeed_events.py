"""TensorBoard events under DeepSpeed's names, for code that used to call `deepspeed.initialize`."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from msam_scale.step_summary import StepResult


class DeepSpeedEvents:
    """`Train/Samples/lr` at every step and `Train/Samples/train_loss` now and then, by samples.

    What was written of steps that are done again, after a restart or a rollback, is hidden.

    Args:
        folder: `output_path`/`job_name` of DeepSpeed's `tensorboard` section; made if need be.
        batch_size: samples of a step over all ranks.
        every: steps between two losses, each of which waits for the device.
    """

    def __init__(self, folder: str | Path, *, batch_size: int, every: int) -> None:
        self._folder, self._batch_size, self._every = folder, batch_size, every
        self._writer: SummaryWriter | None = None
        self._last_step = 0

    def write(self, result: StepResult, *, learning_rate: float, num_steps_done: int) -> None:
        """Writes the events of one step."""
        if num_steps_done != self._last_step + 1:
            self.close()
        self._last_step = num_steps_done
        num_samples = num_steps_done * self._batch_size
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=num_samples)
        self._writer.add_scalar("Train/Samples/lr", learning_rate, num_samples)
        if num_steps_done % self._every == 0:
            self._writer.add_scalar("Train/Samples/train_loss", result.loss, num_samples)
            self._writer.flush()

    def close(self) -> None:
        """Writes out what is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
