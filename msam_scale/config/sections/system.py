"""Where the work runs and what is kept of it; all of it changes the result by rounding only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from msam_scale.config.sections.base import Arguments, Count, PathText, Section, Text

Precision = Literal["float32", "bfloat16", "float16", "float64"]


class ShardingSection(Section):
    """How parameters, gradients and optimizer state are spread over ranks."""

    strategy: Literal["replicated", "fsdp", "zero1", "zero2", "zero3"] = "replicated"
    """What is spread over the ranks: nothing (`replicated`, the default, right for models that fit
    on one device), everything with PyTorch's FSDP2 (`fsdp`), or with DeepSpeed the optimizer state
    (`zero1`), gradients too (`zero2`), parameters too (`zero3`)."""

    shard_group: Count | None = None
    """Ranks that together hold one copy of the parameters, for example those of one node, with
    `fsdp` and `zero3`. It divides the number of ranks. `null`, the default: all ranks."""

    blocks: tuple[Text, ...] | None = Field(default=None, strict=False)
    """Class names of the model's repeated layers, which are gathered, checkpointed and compiled one
    by one. `null`, the default: they are found."""

    deepspeed: PathText | Arguments | None = None
    """DeepSpeed settings that are merged into those this config leads to: the path of a JSON file,
    looked for beside this config first, or the settings themselves. What both decide has to agree.
    `null`, the default: nothing to merge."""

    offload: bool = False
    """Keep optimizer state (and sharded parameters) in host memory. Off by default: it saves device
    memory at the price of slower steps."""


class CheckpointSection(Section):
    """When the state of training is saved, and what a new start does with it."""

    every: Count | None = None
    """Optimizer steps between two checkpoints. `null`, the default: one at the end of training."""

    keep: Count = 2
    """Number of newest checkpoints that are kept; older ones are deleted. 2 by default, so that one
    is left when the newest turns out to be damaged."""

    asynchronous: Annotated[bool, Field(alias="async")] = False
    """Write checkpoints while training goes on, instead of waiting for the disk. Off by default: it
    needs host memory for one more copy of the state."""

    resume: Text = "auto"  # older checkpoints have configs with a path here
    """What a start does with the run's own checkpoints: `auto`, the default, goes on from the
    newest one if there is any, `never` refuses a folder that holds one."""

    start_from: PathText | None = None
    """Folder of another run, or of one of its checkpoints, whose weights and optimizer state the
    run starts from: at step 0, with its own schedule, data and seed. A run that has checkpoints of
    its own goes on from them. `null`, the default: the model's own initial weights."""


class MonitorSection(Section):
    """What is reported while training runs."""

    every: Count = 10
    """Optimizer steps between two reports. 10 by default: often enough to watch, too rare to slow
    the steps down."""

    tensorboard: bool = True
    """Write TensorBoard event files into the run's folder. On by default: they cost next to
    nothing."""

    deepspeed_tensorboard: PathText | None = None
    """Folder that gets TensorBoard event files with DeepSpeed's names by number of samples:
    `Train/Samples/lr` at every step, `Train/Samples/train_loss` at every report. It is
    `output_path`/`job_name` of a DeepSpeed config's `tensorboard` section. `null`, the default:
    none."""

    jsonl: bool = True
    """Write `metrics.jsonl` into the run's folder, one JSON object for each report. On by default:
    plots and comparisons of runs read it."""

    loss_spike: Annotated[float, Field(gt=0)] | None = None
    """Robust standard deviations above the median of the last 50 reported losses from which on a
    reported loss is a spike: it is named and counted as `loss_spikes`, and changes nothing else. 6
    is a sound choice. `null`, the default: nothing is looked for."""

    sharpness_every: Count | None = None
    """Epochs between two measurements of the largest eigenvalue of the training loss's Hessian,
    which is reported as `sharpness`. `null`, the default: none. One takes some ten to two hundred
    forward-backward passes over `sharpness_samples` samples and does not change the run."""

    sharpness_samples: Count = 1024
    """Training samples that such a measurement is over, a random part that stays the same. 1024 by
    default, for a time that does not grow with the data."""

    progress: bool = True
    """Show progress on the first rank's stderr: a bar on a terminal, a line a report elsewhere. On
    by default."""
