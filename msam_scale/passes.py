"""Forward and backward of a micro-batch's chunks, with everything random keyed beforehand."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from data_pipelines.errors import UserError
from msam_scale.batch_tree import Batch, to_device
from msam_scale.layers import PassContext
from msam_scale.layers.generators import Generators
from msam_scale.layers.key_value_cache import KeyValueCaches
from msam_scale.layers.layout_checks import FirstPasses
from msam_scale.layers.spectral_norm import SpectralVectors
from msam_scale.losses import IGNORED_LABEL, LossFunction, LossTerm
from msam_scale.micro_batch import MicroBatch
from msam_scale.precision import Precision
from msam_scale.sharding.interface import Sharding
from msam_scale.step_summary import StepSummary


class Passes:
    """Runs one pass over a micro-batch: for each chunk a forward and a backward."""

    def __init__(
        self,
        loss_fn: LossFunction,
        *,
        sharding: Sharding,
        context: PassContext,
        generators: Generators,
        precision: Precision,
        device: torch.device,
        summary: StepSummary,
        vectors: SpectralVectors,
        speaks: bool,
    ) -> None:
        self._loss_fn = loss_fn
        self._sharding = sharding
        self._context = context
        self._generators = generators
        self._precision = precision
        self._device = device
        self._summary = summary
        self._caches = KeyValueCaches(sharding.model)
        self._first_passes = FirstPasses(
            sharding.model,
            generators,
            vectors=vectors,
            speaks=speaks,
            gathers=sharding.forward_is_collective,
        )

    def run(self, micro_batch: MicroBatch, *, divisor: int, at_weights: bool) -> None:
        """Back-propagates the sum of the slice's losses divided by `divisor` samples.

        Where `loss_fn` gives weights, their sum over ranks takes the place of `divisor` afterwards,
        by the scales of the summary.

        Args:
            micro_batch: this rank's slice of S_j.
            divisor: |S_j| where the sum over the perturbation group is to be ∇L_{S_j}, B where the
                sum over all ranks and micro-batches is to be the mini-batch's gradient.
            at_weights: the parameters are w: the loss of this pass is the reported one, and it
                records batch statistics. The pass at w + ε records none.
        """
        if at_weights and (is_unlabelled := _lacks_labels(micro_batch.batch)) is not None:
            self._summary.add_unlabelled(is_unlabelled)
        for chunk in micro_batch.chunks():
            batch = self.on_device(chunk.batch)
            with (
                self._generators.chunk(chunk.positions.start),
                self._context.chunk(chunk.positions, records_statistics=at_weights),
                self._caches.off(),
            ):
                with self._first_passes.forward(), self._precision.autocast(self._device):
                    returned = self._loss_fn(self._sharding.model, batch)
                term = LossTerm.of(returned, num_samples=len(chunk.positions))
                _check_gradient(term.value)
                self._context.in_backward = True
                share = term.multiplicity / divisor
                with self._first_passes.backward(term.value):
                    self._sharding.backward(term.value * share, last=chunk.is_last)
            self._summary.add_loss(term, at_weights=at_weights)

    def on_device(self, batch: Batch) -> Batch:
        """The batch on this rank's device, in a type the parameters can meet; itself if it is."""
        return to_device(batch, self._device, widen_to=self._precision.parameters)


def _lacks_labels(batch: Batch) -> torch.Tensor | None:
    """Whether no sample has a label, a bool scalar: a mean over labels is then one over nothing."""
    labels = None
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    elif isinstance(batch, list | tuple) and len(batch) == len(("inputs", "labels")):
        labels = batch[1]
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return None
    return (labels == IGNORED_LABEL).all()


def _check_gradient(loss: torch.Tensor) -> None:
    if not loss.requires_grad:
        raise UserError(
            "loss_fn returned a loss without a gradient: it must be computed from the model's "
            "parameters, outside torch.no_grad(), and not be detached"
        )
