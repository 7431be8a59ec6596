"""What one optimizer step computes: the objective and the mini-batch it is computed on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from msam_scale.config.sections.base import Count, Section, Text

Algorithm = Literal["vanilla", "sam", "msam"]
NonFinitePolicy = Literal["skip", "abort", "rollback"]
Radius = Annotated[float, Field(ge=0)]


class Phase(Section):
    """One part of a run that changes its algorithm on the way."""

    until: Annotated[float, Field(gt=0, le=1)]
    """Fraction of all optimizer steps at which this phase ends; 1 is the end of the run."""

    algorithm: Algorithm
    """Algorithm of this phase, as in `objective.algorithm`."""


class ObjectiveSection(Section):
    """The loss that is minimised: plain, or its worst case in a ball around the weights."""

    algorithm: Algorithm = "msam"
    """`vanilla` minimises the training loss; `sam` the loss at the worst point within `rho`, one
    perturbation for the mini-batch; `msam`, the default, the same with one perturbation for each of
    `micro_batches` parts of the mini-batch."""

    micro_batches: Count | None = None
    """The paper's m: number of disjoint, equal parts of the mini-batch that are each perturbed on
    their own. It changes the result, the number of ranks does not. `msam` needs it, because no
    value suits every batch; 1 is SAM."""

    rho: Radius | Annotated[tuple[Radius, ...], Field(strict=False)] = 0.05
    """Radius of the perturbation: its 2-norm over all parameters, in the parameters' own unit. 0.05
    by default, the usual choice for SAM on images; 0 makes the perturbation vanish. A list has a
    radius for each of `micro_batches`, in their order."""

    ascent: Text = "sam"
    """Rule that turns a micro-batch's gradient into its perturbation. `sam`, the default, is the
    gradient scaled to the length `rho`; `unnormalized` is `rho` times the gradient."""

    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    """Parts of the run with an algorithm of their own, in order, each with `until` and `algorithm`:
    the paper's hybrid training. After the last of them `objective.algorithm` goes on. Empty by
    default: `objective.algorithm` throughout."""

    non_finite: NonFinitePolicy = "skip"
    """What a step does whose loss or gradient, in either pass, is not finite. `skip`, the default,
    leaves its update out; `abort` ends the run; `rollback` goes back to the last checkpoint and
    passes over the data from there to the bad step. The weights never take a bad step."""

    max_skipped_steps: Count = 10
    """Number of optimizer steps in a row that may be skipped because of a loss or gradient that is
    not finite, before training stops with an error. 10 by default: enough for a rare bad batch, few
    enough to notice that a run has diverged."""

    max_rollbacks: Count = 3
    """With `objective.non_finite: rollback`: more rollbacks than this before another checkpoint is
    reached end the run. 3 by default."""

    @property
    def algorithms(self) -> list[Algorithm]:
        """The algorithms that some step follows, each once."""
        return list(dict.fromkeys([*(phase.algorithm for phase in self.phases), self.algorithm]))

    def radius(self, micro_batch: int) -> float:
        """ρ of the micro-batch with this number, from 0 on."""
        return self.rho[micro_batch] if isinstance(self.rho, tuple) else self.rho

    @property
    def ascends(self) -> bool:
        """Whether some step perturbs the weights."""
        return self.algorithms != ["vanilla"]


class BatchSection(Section):
    """The mini-batch of one optimizer step and how it is cut up."""

    size: Count
    """B: samples of one optimizer step over all ranks together. Required: it changes the result,
    so no value can be guessed. It must be a multiple of `objective.micro_batches`."""

    chunk: Count | None = None
    """Most samples that go through the model at once on one rank, so that their activations fit
    into memory. It does not change the result. `null`, the default: all of a rank's samples of a
    micro-batch at once."""

    check_split: bool = True
    """Before the first step that splits micro-batches, compare the loss of some samples with the
    mean over their halves, and refuse a loss that is no mean over independent samples: split, it
    would be another. On by default; `false` trains on the mean of the parts' losses."""

    norm_samples: Count | None = None
    """Consecutive samples that BatchNorm layers normalise together (ghost batches). It changes the
    result of models with BatchNorm, and only of those. `null`, the default: a whole micro-batch."""
