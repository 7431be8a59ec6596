"""What a step reports, gathered on the device and reduced over all ranks once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from msam_scale.batch_plan import BatchPlan
from msam_scale.layers.running_statistics import RunningStatistics
from msam_scale.losses import LossTerm
from msam_scale.non_finite import fault_bits
from msam_scale.ranks import Ranks

_LOSS, _PERTURBED_LOSS, _ASCENT_NORM, _NUM_NON_FINITE, _FIDELITY, _WEIGHT = range(6)
_NUM_UNLABELLED, _LENGTH, _LINEAR_RISE, _NUM_SCALARS = 6, 7, 8, 9


class StepSummary:
    """One float64 vector: losses, figures of the ascents, batch statistics.

    It travels in a single all-reduce beside the gradients, however many of these there are.
    """

    def __init__(
        self,
        statistics: RunningStatistics,
        *,
        ranks: Ranks,
    ) -> None:
        self._statistics = statistics
        self._ranks = ranks
        self._values = torch.zeros(
            _NUM_SCALARS + statistics.size, dtype=torch.float64, device=ranks.device
        )
        statistics.bind(self._values[_NUM_SCALARS:])

    def begin_step(self, plan: BatchPlan) -> None:
        """Clears the sums; `plan` says how often a figure will be counted."""
        self._plan = plan
        self._values.zero_()
        self._is_measured = self._ascends = False
        self._is_weighed = False
        self._weight_of_slice: torch.Tensor | None = None

    def add_loss(self, term: LossTerm, *, at_weights: bool) -> None:
        """Counts the loss of some samples, at w or at w + ε⁽ʲ⁾."""
        place = _LOSS if at_weights else _PERTURBED_LOSS
        share = term.multiplicity / self._plan.batch_size
        self._values[place] += term.value.detach().double() * share
        if at_weights and term.weight is not None:
            self._is_weighed = True
            self._values[_WEIGHT] += term.weight / self._plan.batch_size
            before = 0.0 if self._weight_of_slice is None else self._weight_of_slice
            self._weight_of_slice = term.weight + before

    def ascent_scale(self) -> torch.Tensor | None:
        """What the ascent gradient lacks: |S_j| samples over the weight of S_j.

        Collective in the perturbation group. None where all samples weigh the same; 0 where no
        sample has any weight.
        """
        weight, self._weight_of_slice = self._weight_of_slice, None
        if weight is None:
            return None
        group = self._ranks.group_of(self._plan.group_size)
        if group is not None:
            dist.all_reduce(weight, group=group)
        return torch.where(weight > 0, self._plan.micro_batch_size / weight, 0.0)

    def add_unlabelled(self, is_unlabelled: torch.Tensor) -> None:
        """Counts a rank's part of a micro-batch in which no sample has a label, a bool scalar."""
        self._values[_NUM_UNLABELLED] += is_unlabelled

    def add_ascent_norm(self, norm: torch.Tensor) -> None:
        """Counts ‖g_j‖₂, which every rank of the perturbation group reports."""
        self._values[_ASCENT_NORM] += norm / self._num_reports
        self._values[_NUM_NON_FINITE] += ~norm.isfinite()
        self._ascends = True

    def add_perturbation(
        self, *, gradient_norm: torch.Tensor, length: torch.Tensor, fidelity: torch.Tensor
    ) -> None:
        """Counts ‖g_j‖₂ ‖ε⁽ʲ⁾‖₂, ‖ε⁽ʲ⁾‖₂ and what is left of ε⁽ʲ⁾ in the type that computes.

        Every rank of the perturbation group reports them.
        """
        self._values[_LINEAR_RISE] += gradient_norm * length / self._num_reports
        self._values[_LENGTH] += length / self._num_reports
        self._values[_FIDELITY] += fidelity / self._num_reports
        self._is_measured = True

    @property
    def _num_reports(self) -> int:
        return self._plan.micro_batches * self._plan.group_size

    def reduce(self) -> None:
        """Sums over all ranks."""
        if self._ranks.world is not None:
            dist.all_reduce(self._values, group=self._ranks.world)
        if self._is_weighed:
            self._values[[_LOSS, _PERTURBED_LOSS]] /= self._values[_WEIGHT]

    def gradient_scale(self) -> torch.Tensor | None:
        """What the reduced gradient lacks: B samples over the weight of the mini-batch.

        After `reduce`; None where all samples weigh the same.
        """
        if not self._is_weighed:
            return None
        weight = self._values[_WEIGHT]
        return torch.where(weight > 0, 1 / weight, 0.0)

    def finish_step(self, gradient_norm: torch.Tensor) -> StepResult:
        """Moves the running statistics, unless the step is to be skipped.

        Args:
            gradient_norm: of the reduced gradient, a float64 scalar on the device.

        Returns:
            The step's figures, apart from the sums that the next step overwrites.
        """
        scalars = self._values[:_NUM_SCALARS].clone()
        is_finite = scalars.isfinite()
        is_bad = [~is_finite[_LOSS], ~gradient_norm.isfinite()]
        if self._ascends:
            is_bad.insert(1, scalars[_NUM_NON_FINITE] > 0)
            is_bad.insert(2, ~is_finite[_PERTURBED_LOSS])
        faults = fault_bits(
            is_bad,
            ascends=self._ascends,
            statistics=~self._statistics.follow(),
            lacks_labels=scalars[_NUM_UNLABELLED] > 0,
        )
        skip = faults > 0
        self._statistics.update(~skip)
        return StepResult(
            skip=skip,
            faults=faults,
            _loss=scalars[_LOSS],
            _gradient_norm=gradient_norm,
            _ascent_norm=scalars[_ASCENT_NORM],
            _fidelity=scalars[_FIDELITY] if self._is_measured else None,
            _length=scalars[_LENGTH] if self._is_measured else None,
            _linear_rise=scalars[_LINEAR_RISE] if self._is_measured else None,
            _perturbed_loss=scalars[_PERTURBED_LOSS] if self._ascends else None,
        )


@dataclass(frozen=True, repr=False)
class StepResult:
    """Figures of one optimizer step, equal on all ranks; reading a property waits for the device.

    Attributes:
        skip: whether a loss or a gradient, of either pass, was not finite: a bool scalar on the
            device.
        faults: which of them, an int64 scalar on the device that `non_finite.fault_words` reads.
    """

    skip: torch.Tensor
    faults: torch.Tensor
    _loss: torch.Tensor
    _gradient_norm: torch.Tensor
    _ascent_norm: torch.Tensor
    _fidelity: torch.Tensor | None = None
    _perturbed_loss: torch.Tensor | None = None
    _length: torch.Tensor | None = None
    _linear_rise: torch.Tensor | None = None

    def __repr__(self) -> str:
        figures = {"loss": self.loss, "grad_norm": self.grad_norm, "ascent_norm": self.ascent_norm}
        shown = ", ".join(f"{name}={value:.6g}" for name, value in figures.items())
        return f"StepResult({shown}, skipped={self.skipped})"

    @property
    def loss(self) -> float:
        """Mean loss of the whole mini-batch at w, before the update."""
        return float(self._loss)

    @property
    def perturbed_loss(self) -> float | None:
        """The same at w + ε⁽ʲ⁾; None in a step without an ascent."""
        return None if self._perturbed_loss is None else float(self._perturbed_loss)

    @property
    def grad_norm(self) -> float:
        """‖·‖₂ of the reduced gradient, before clipping."""
        return float(self._gradient_norm)

    @property
    def ascent_norm(self) -> float:
        """Mean over the micro-batches of ‖g_j‖₂; 0 without an ascent."""
        return float(self._ascent_norm)

    @property
    def perturbation_fidelity(self) -> float | None:
        """The part of the perturbation that survives in the computing type, over micro-batches.

        The mean of ⟨c(w + ε) - c(w), ε⟩ / ‖ε‖², with c the rounding to that type: 1 where nothing
        is lost. None in a step that did not measure it.
        """
        return None if self._fidelity is None else float(self._fidelity)

    @property
    def perturbation_norm(self) -> float | None:
        """Mean over the micro-batches of ‖ε⁽ʲ⁾‖₂; None in a step that did not measure it."""
        return None if self._length is None else float(self._length)

    @property
    def alignment(self) -> float | None:
        """How far gradients at w + ε⁽ʲ⁾ point along those at w, from what the loss has risen by.

        (L(w + ε⁽ʲ⁾) - L(w)) / (‖g_j‖ ‖ε⁽ʲ⁾‖), numerator and denominator each meant over the
        micro-batches. With ε⁽ʲ⁾ along g_j it is the mean of ⟨∇L(w + t ε⁽ʲ⁾), g_j⟩ / ‖g_j‖² over t
        from 0 to 1: 1 where the loss is linear, more where it curves upwards, 0 or less where the
        ascent does not ascend. None in a step that did not measure it or had no gradient.
        """
        if self._linear_rise is None or self._perturbed_loss is None or not self._linear_rise:
            return None
        return float((self._perturbed_loss - self._loss) / self._linear_rise)

    @property
    def skipped(self) -> bool:
        """Whether the update was left out because a loss or a gradient was not finite."""
        return bool(self.skip)
