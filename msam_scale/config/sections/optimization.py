"""How the weights move: the optimizer, its schedule and the length of the training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from msam_scale.config.sections.base import Arguments, Count, Section, Text

ClassificationMetric = Literal["accuracy", "f1", "matthews_correlation"]


class OptimizerSection(Section):
    """The optimizer that takes the averaged gradient."""

    name: Text = "sgd"
    """Name of the optimizer: one of torch.optim in lower case, for example `sgd` or `adamw`; with
    ZeRO also DeepSpeed's own `deepspeed_adam`, `deepspeed_adamw`, `deepspeed_lion` and
    `deepspeed_adagrad`; or `client`, the optimizer that code passes to `initialize`. `sgd` by
    default, as in the paper's image experiments."""

    lr: Annotated[float, Field(ge=0)] | None = None
    """Learning rate at the top of the schedule; 0 leaves the weights as they are. Training from the
    command line needs it, because no value suits every model; `null` leaves it to the optimizer's
    own default."""

    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum coefficient, for optimizers that have one. `null`, the default, leaves it to the
    optimizer's own default."""

    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay coefficient in the optimizer's own sense: added to the gradient by `sgd`,
    decoupled from it in `adamw`. `null`, the default, leaves it to the optimizer's own default."""

    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest 2-norm of the averaged gradient over all parameters; a longer one is scaled down to
    it before the optimizer steps. `null`, the default: no clipping."""

    args: Arguments = Field(default_factory=dict)
    """Further keyword arguments of the optimizer's constructor, passed on as they are, for example
    `{nesterov: true}`. Empty by default: the optimizer's own defaults."""


class ScheduleSection(Section):
    """How the learning rate changes from step to step."""

    name: Literal[
        "one_cycle",
        "cosine",
        "linear",
        "constant",
        "LRRangeTest",
        "OneCycle",
        "WarmupLR",
        "WarmupDecayLR",
        "WarmupCosineLR",
    ] = "constant"
    """Shape of the learning rate over all steps: up and down again, down a half cosine, down a
    straight line, or unchanged; or a schedule of DeepSpeed under DeepSpeed's name. `constant` by
    default, because it needs no knowledge of the run's length."""

    warmup: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0
    """Length of the linear rise at the start: a whole number is optimizer steps, a fraction
    below 1 is that part of all steps. 0 by default: no rise. DeepSpeed's schedules have arguments
    for it instead."""

    args: Arguments = Field(default_factory=dict)
    """Arguments of a DeepSpeed schedule, those of `scheduler.params` in a DeepSpeed config, for
    example `{warmup_num_steps: 100, total_num_steps: 1000}`. Where they set the rate itself,
    `optimizer.lr` is left out. Empty by default: DeepSpeed's own defaults."""


class LossScaleSection(Section):
    """How the loss is multiplied up before a float16 backward, so that small gradients survive.

    The rule is that of DeepSpeed's `fp16` section: the scale halves after an overflow and doubles
    after enough steps without one.
    """

    static: Annotated[float, Field(gt=0)] | None = None
    """A scale that stays as it is. `null`, the default: one that adapts itself."""

    initial_power: Annotated[int, Field(ge=0, le=127)] = 16
    """The first scale, as a power of two. 16 by default, as in DeepSpeed: 65536."""

    window: Count = 1000
    """Steps without an overflow after which the scale doubles. 1000 by default."""

    hysteresis: Count = 2
    """Overflows until the scale halves; earlier ones only skip their step. 2 by default."""

    consecutive_hysteresis: bool = False
    """Every step without an overflow starts that count anew, not only one that doubles the scale.
    Off by default."""

    min: Annotated[float, Field(gt=0)] = 1.0
    """The scale falls no lower. 1 by default."""


class TrainingSection(Section):
    """The training loop."""

    epochs: Count | None = None
    """Length of the training in epochs: as many steps as there are whole mini-batches, the samples
    left over being others each epoch. Give this or `training.steps`, not both; training from the
    command line needs one of them."""

    steps: Count | None = None
    """Length of the training in optimizer steps. Give this or `training.epochs`, not both; training
    from the command line needs one of them."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label's probability that the default cross-entropy loss spreads evenly over all
    classes. 0 by default: plain labels."""

    mixup: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    """Mix the images and labels of each micro-batch with weights distributed as Beta(α, α), for
    this α (mixup). `null`, the default, mixes nothing."""

    cutmix: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    """Replace a box of each image by that of another one of its micro-batch, and mix the labels by
    area; the box's share is distributed as Beta(α, α) for this α (cutmix). Together with
    `training.mixup` each micro-batch gets one of the two. `null`, the default: neither."""

    eval_every: Count | None = None
    """Optimizer steps between two evaluations on `data.val`. `null`, the default: once an epoch."""

    metrics: Annotated[tuple[ClassificationMetric, ...], Field(strict=False, min_length=1)] = (
        "accuracy",
    )
    """What an evaluation reports beside the loss: `accuracy`, `f1` (of class 1, of two classes),
    `matthews_correlation`. `[accuracy]` by default."""

    compile: bool = False
    """Compile the model with `torch.compile`. Off by default: the first step takes long, and not
    every model compiles."""

    activation_checkpointing: bool | Annotated[int, Field(ge=2)] = False
    """Compute activations of the model's blocks again in the backward pass instead of keeping them:
    less memory, about a third more computation. A whole number n does so in every n-th block only.
    Off by default."""

    loss_scale: LossScaleSection = Field(default_factory=LossScaleSection)
    """Loss scaling, with `precision: float16`: a mapping with `static`, or with `initial_power`,
    `window`, `hysteresis`, `consecutive_hysteresis` and `min`, which mean what they do in
    DeepSpeed's `fp16` section. DeepSpeed's defaults by default."""

    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay, for each step, of an exponential moving average of the weights that is evaluated and
    saved beside them; it takes the memory of one more copy, sharded as they are. `null`, the
    default: no average."""

    def num_steps(self, steps_per_epoch: int | None) -> int | None:
        """Optimizer steps of the whole run; None where epochs of an unknown length tell."""
        if self.steps is not None or steps_per_epoch is None:
            return self.steps
        return steps_per_epoch * (self.epochs or 0)
