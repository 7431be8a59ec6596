"""TensorBoard events under DeepSpeed's names, for code that used to call `deepspeed.initialize`."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from msam_scale.step_summary import StepResult


class DeepSpeedEvents:
    """`Train/Samples/lr` at every step and `Train/Samples/train_loss` now and then, by samples.

    Args:
        folder: `output_path`/`job_name` of DeepSpeed's `tensorboard` section; made if need be.
        batch_size: samples of a step over all ranks.
        every: steps between two losses, each of which waits for the device.
    """

    def __init__(self, folder: str | Path, *, batch_size: int, every: int) -> None:
        self._batch_size, self._every = batch_size, every
        self._writer = SummaryWriter(str(folder))

    def write(self, result: StepResult, *, learning_rate: float, num_steps_done: int) -> None:
        """Writes the events of one step."""
        num_samples = num_steps_done * self._batch_size
        self._writer.add_scalar("Train/Samples/lr", learning_rate, num_samples)
        if num_steps_done % self._every == 0:
            self._writer.add_scalar("Train/Samples/train_loss", result.loss, num_samples)
            self._writer.flush()
