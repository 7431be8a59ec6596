"""Hessian-vector products from differences of gradients, under every sharding.

Nothing is differentiated twice, so a sharded model takes the way that its training takes: gathered
block by block, its gradients reduced and scattered. Products have an error, which is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, sqrt

import torch
import torch.distributed as dist

from msam_scale.batch_plan import BatchPlan
from msam_scale.batch_tree import Batch, num_samples, to_device
from msam_scale.flatness.hessian_vector import check_batches, inner_products, random_signs
from msam_scale.layers.modes import evaluating
from msam_scale.losses import LossFunction, LossTerm
from msam_scale.precision import Precision
from msam_scale.ranks import Ranks
from msam_scale.sharding.interface import Sharding

# Steps that are tried, as multiples of ∛eps · ‖w‖, where the error of a central difference is least
# for functions whose derivatives are all of the order of 1.
_STEP_LADDER = tuple(4.0**power for power in range(-3, 4))
_NO_WEIGHTS = 1e-12


class DifferenceCurvature:
    """The loss over a data set around the present weights: value, gradient, Hessian products.

    A product is the central difference (∇L(w + h v/‖v‖) - ∇L(w - h v/‖v‖)) ‖v‖ / 2h, whose error
    is of order h² from the third derivative and of order 1/h from rounding. The step h is the one,
    of a ladder of seven, at which the product changes least, relative to its length, when h grows
    fourfold; it is chosen along the Hessian's image of a random direction, which leans towards the
    largest eigenvalues, where products are needed. `relative_error` measures what is left along any
    vector.

    At kinks, as ReLUs have them, gradients jump, and no step comes arbitrarily close to
    `ExactCurvature`, whose second derivative is that of the pieces between the kinks: a difference
    holds a part of each jump that lies within h. `relative_error` shows that, too.

    The model is evaluated as in `ExactCurvature`: dropout off, batch normalization by its running
    statistics. Vectors are laid out as `sharding.ascent_gradient.flat`, this rank's parts only; a
    product takes memory for four of them. Between two products the weights are w, bit for bit.
    Every method is collective.

    Args:
        sharding: of the model, between two steps. Where no step ascends, it gets an ascent buffer.
        loss_fn: the loss of the samples given.
        batches: this rank's part of the data set, gone through once for each gradient, so no
            iterator. Ranks may have different numbers of batches, but each at least one.
        ranks: this process's place among all.
        plan: the one that the sharding follows: it says which ranks an ascent pass sums over.
        precision: what the model computes in.
        step: h, in the space of all weights; None chooses it.
        seed: of the direction along which it is chosen.

    Raises:
        ValueError: `batches` is an iterator or empty.
    """

    def __init__(
        self,
        sharding: Sharding,
        *,
        loss_fn: LossFunction,
        batches: Iterable[Batch],
        ranks: Ranks,
        plan: BatchPlan,
        precision: Precision,
        step: float | None = None,
        seed: int = 0,
    ) -> None:
        check_batches(batches)
        sharding.hold_ascent_gradient()
        self._sharding, self._loss_fn, self._batches = sharding, loss_fn, batches
        self._ranks, self._precision = ranks, precision
        self._shard_group = ranks.group_of(plan.shard_group_size)
        self._across = ranks.replicas_of(plan.group_size, within=ranks.size)
        self._place = ranks.rank % plan.shard_group_size
        self._whole = list(sharding.held_whole())
        self._buffer = sharding.ascent_gradient
        self._counted = self._mask_of_counted()
        self._count_samples()
        self._step = self._chosen_step(seed) if step is None else step

    @property
    def step(self) -> float:
        """h, the distance in the space of all weights from w to where gradients are taken."""
        return self._step

    def loss(self) -> float:
        """The mean loss over all samples of all ranks."""
        total = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        weight = torch.zeros_like(total)
        with evaluating(self._sharding.model), torch.no_grad():
            for term, is_counted, _ in self._terms():
                total += term.value.double() * term.multiplicity * is_counted
                weight += term.total_weight * is_counted
        self._sharding.weights_written()  # such forwards leave parameters gathered
        if self._ranks.world is not None:
            dist.all_reduce(total, group=self._ranks.world)
            dist.all_reduce(weight, group=self._ranks.world)
        return float(total / weight)

    def gradient(self) -> torch.Tensor:
        """This rank's part of the gradient of `loss`."""
        weight = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        with evaluating(self._sharding.model), self._sharding.ascent_pass():
            for term, is_counted, is_last in self._terms():
                share = term.multiplicity * is_counted / self._num_samples
                self._sharding.backward(term.value * share, last=is_last)
                weight += term.total_weight * is_counted
        gradient = self._buffer.flat.clone()
        if self._across is not None:
            dist.all_reduce(gradient, group=self._across)
        if self._ranks.world is not None:
            dist.all_reduce(weight, group=self._ranks.world)
        # By 1, where every sample counts once.
        return gradient.mul_((self._num_samples / weight).to(gradient.device))

    def product(self, vector: torch.Tensor) -> torch.Tensor:
        """The Hessian of `loss` times a vector, up to `relative_error`."""
        return self._difference(vector, step=self._step)

    def relative_error(self, vector: torch.Tensor) -> float:
        """‖D(h) - D(2h)‖ / ‖D(h)‖ of the product D with this vector.

        Of the error from the third derivative this is three times as much as D(h) has, and of the
        one from rounding as much: an upper estimate, but no bound. It is 0 where D(h) is.
        """
        product = self.product(vector)
        size = self._norm(product)
        if not size:
            return 0.0
        return self._norm(self._difference(vector, step=2 * self._step) - product) / size

    @contextmanager
    def displaced(self, displacement: torch.Tensor) -> Iterator[None]:
        """Inside, the weights are w + displacement; outside w again, bit for bit."""
        weights = self._sharding.weights()
        kept = [weight.clone() for weight in weights]
        try:
            torch._foreach_add_(list(weights), self._views_of(displacement))
            self._sharding.weights_written()
            yield
        finally:
            torch._foreach_copy_(list(weights), kept)
            self._sharding.weights_written()

    def inner(self, rows: Sequence[torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
        """⟨row, vector⟩ over all shards for each row."""
        if self._counted is not None:
            vector = vector * self._counted
        products = inner_products(rows, vector).to(self._ranks.device)
        if self._shard_group is not None:
            dist.all_reduce(products, group=self._shard_group)
        if self._ranks.world is not None:
            # All ranks decide on these numbers whether to go on: they must not differ in a bit.
            dist.broadcast(products, src=0, group=self._ranks.world)
        return products.cpu()

    def random_signs(self, seed: int) -> torch.Tensor:
        """A vector of independent entries ±1, the same on all replicas of a shard.

        Which signs these are depends on the layout.
        """
        signs = torch.zeros_like(self._buffer.flat)
        for index, (view, whole) in enumerate(zip(self._views_of(signs), self._whole, strict=True)):
            # What is whole is the same on every rank; of shards each is drawn for itself.
            place = 0 if whole else self._place
            key = hash((seed, index, place)) % 2**63
            view.copy_(random_signs(view.numel(), seed=key).view(view.shape))
        return signs

    def _difference(self, vector: torch.Tensor, *, step: float) -> torch.Tensor:
        norm = self._norm(vector)
        if norm == 0:
            return torch.zeros_like(vector)
        with self.displaced(vector * (step / norm)):
            ahead = self.gradient()
        with self.displaced(vector * (-step / norm)):
            behind = self.gradient()
        return ahead.sub_(behind).mul_(norm / (2 * step))

    def _chosen_step(self, seed: int) -> float:
        weights = torch.zeros_like(self._buffer.flat)
        torch._foreach_copy_(self._views_of(weights), list(self._sharding.weights()))
        size = self._norm(weights) or _NO_WEIGHTS
        base = float(torch.finfo(weights.dtype).eps ** (1 / 3)) * size
        direction = self._difference(self.random_signs(seed), step=base)
        best, least, before = base, inf, None
        for factor in _STEP_LADDER:
            product = self._difference(direction, step=factor * base)
            if before is not None and (size := min(self._norm(product), self._norm(before))):
                # Relative to the shorter: far too large a step gives products near zero, which
                # hardly change, or very long ones, beside which everything else is short.
                change = self._norm(product - before) / size
                if change < least:
                    best, least = factor / 4 * base, change
            before = product
        return best

    def _terms(self) -> Iterator[tuple[LossTerm, bool, bool]]:
        """The loss of each batch, whether it counts, and whether it is the pass's last.

        Ranks with fewer batches go on with their last one, which does not count again: in a sharded
        forward and backward all wait for each other.
        """
        count, batch = 0, None
        for batch in self._batches:
            count += 1
            yield self._term_of(batch), True, count == self._most
        for number in range(count + 1, self._most + 1):
            yield self._term_of(batch), False, number == self._most

    def _term_of(self, batch: Batch) -> LossTerm:
        device = self._ranks.device
        batch = to_device(batch, device, widen_to=self._precision.parameters)
        with self._precision.autocast(device):
            returned = self._loss_fn(self._sharding.model, batch)
        return LossTerm.of(returned, num_samples=num_samples(batch))

    def _count_samples(self) -> None:
        sizes = [num_samples(batch) for batch in self._batches]
        totals = torch.tensor([float(sum(sizes))], dtype=torch.float64, device=self._ranks.device)
        extremes = torch.tensor([len(sizes), -len(sizes)], device=self._ranks.device)
        if self._ranks.world is not None:
            dist.all_reduce(totals, group=self._ranks.world)
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self._ranks.world)
        self._num_samples, self._most = int(totals), int(extremes[0])
        if not -int(extremes[1]):
            raise ValueError("a rank has no batch; each needs at least one")

    def _mask_of_counted(self) -> torch.Tensor | None:
        """1 for what this rank counts in sums over all shards; None if it counts everything."""
        if self._place == 0 or not any(self._whole):
            return None
        mask = torch.ones_like(self._buffer.flat)
        for view, whole in zip(self._views_of(mask), self._whole, strict=True):
            if whole:
                view.zero_()
        return mask

    def _norm(self, vector: torch.Tensor) -> float:
        return sqrt(self.inner([vector], vector)[0])

    def _views_of(self, flat: torch.Tensor) -> list[torch.Tensor]:
        return [
            flat.as_strided(view.shape, view.stride(), start)
            for view, start in zip(self._buffer.views, self._buffer.starts, strict=True)
        ]
