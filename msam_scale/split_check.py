"""Is the loss a mean over independent samples? Where micro-batches are split, it has to be.

Contrastive losses, auxiliary losses of mixtures of experts or means over tokens are other losses as
soon as a micro-batch is cut into chunks or spread over ranks. Nothing fails then: the model trains
on something else. So before the first step that splits micro-batches the loss of some samples is
compared with that of their halves.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from data_pipelines.errors import UserError
from msam_scale.batch_plan import BatchPlan
from msam_scale.batch_tree import Batch, narrow, num_samples, repeated, to_device
from msam_scale.config import Config
from msam_scale.layers.generators import Generators
from msam_scale.layers.modes import evaluating
from msam_scale.losses import LossFunction, LossTerm
from msam_scale.precision import Precision
from msam_scale.ranks import Ranks
from msam_scale.sharding.interface import Sharding

# Relative differences that kernels for other numbers of samples make at most, by computing type.
_BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
_LEAST_LOSS = 1e-3


class SplitCheck:
    """Compares, once, the loss of some samples with that of their halves.

    Args:
        config: whether it is asked for, and the chunk.
        sharding: of the model.
        loss_fn: what is looked at.
        generators: what a forward may draw from in evaluation mode, too.
        precision: what the passes compute in.
        ranks: all of them take part.
    """

    def __init__(
        self,
        config: Config,
        *,
        sharding: Sharding,
        loss_fn: LossFunction,
        generators: Generators,
        precision: Precision,
        ranks: Ranks,
    ) -> None:
        self._is_due = config.batch.check_split
        self._chunk = config.batch.chunk
        self._sharding, self._loss_fn, self._generators = sharding, loss_fn, generators
        self._precision, self._ranks = precision, ranks

    def look(self, micro_batch: Batch, plan: BatchPlan) -> None:
        """Looks at a rank's slice of a micro-batch, if `plan` splits micro-batches. Collective.

        It takes no more memory than training: without gradients, as many samples as a chunk has,
        but at least two. Where a rank has a single sample, it counts twice. A loss that is another
        one with other random numbers, though the model is in evaluation mode, is not judged.

        Raises:
            UserError: the two losses differ; names both, what splits micro-batches, and what would
                not.
        """
        chunk = min(self._chunk or plan.slice_size, plan.slice_size)
        if not self._is_due or chunk == plan.micro_batch_size:
            return
        self._is_due = False
        samples = narrow(micro_batch, 0, min(max(2, chunk), plan.slice_size))
        if num_samples(samples) == 1:
            samples = repeated(samples, 2)
        whole, halves, again = self._losses(samples)
        bound = _BOUNDS[self._precision.compute] * max(abs(whole), abs(halves), _LEAST_LOSS)
        if abs(whole - halves) > bound and abs(whole - again) <= bound:
            raise UserError(_refusal(whole, halves, chunk=chunk, plan=plan))

    def _losses(self, samples: Batch) -> list[float]:
        """The loss of the samples, that of their halves, and the first with other random numbers.

        Means over all ranks.
        """
        count = num_samples(samples)
        half = count // 2
        samples = to_device(samples, self._ranks.device, widen_to=self._precision.parameters)
        with evaluating(self._sharding.model), torch.no_grad():
            whole = self._term(samples)
            parts = [
                self._term(narrow(samples, 0, half)),
                self._term(narrow(samples, half, count - half)),
            ]
            again = self._term(samples, draw=1)
        self._sharding.weights_written()  # such forwards leave parameters gathered
        weight = parts[0].total_weight + parts[1].total_weight
        first, second = (part.value.double() * part.multiplicity for part in parts)
        halves = (first + second) / weight
        # Samples without any weight say nothing.
        losses = torch.stack([whole.mean.double(), halves, again.mean.double()]).nan_to_num()
        if self._ranks.world is not None:
            dist.all_reduce(losses, group=self._ranks.world)
        means: list[float] = (losses / self._ranks.size).tolist()
        return means

    def _term(self, samples: Batch, *, draw: int = 0) -> LossTerm:
        with self._generators.chunk(draw), self._precision.autocast(self._ranks.device):
            returned = self._loss_fn(self._sharding.model, samples)
        return LossTerm.of(returned, num_samples=num_samples(samples))


def _refusal(whole: float, halves: float, *, chunk: int, plan: BatchPlan) -> str:
    splits, remedies = [], []
    if chunk < plan.slice_size:
        splits.append(f"batch.chunk: {chunk}")
        remedies.append(f"batch.chunk: {plan.slice_size}")
    if plan.group_size > 1:
        splits.append(f"{plan.group_size} ranks that share a micro-batch")
        if plan.shard_group_size > 1:
            remedies.append("sharding.strategy: replicated")
        remedies.append(f"objective.micro_batches: a multiple of {plan.world_size}")
    return (
        f"the loss of some samples is {whole:.6g}, but the mean over their halves is {halves:.6g}: "
        f"it is no mean over independent samples, and {' and '.join(splits)} would make it another "
        f"loss. Use {' and '.join(remedies)}, so that no micro-batch is split; or let loss_fn "
        "return a pair (sum, weight), where it is a mean over tokens or weighted samples; or set "
        "batch.check_split: false to train on the mean of the parts' losses"
    )
