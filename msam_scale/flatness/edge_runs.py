"""Training small networks to the edge of stability, to hold section 3 against what happens.

SGD, unnormalised SAM and unnormalised mSAM (equations (18) to (20)) run side by side in float64,
from the same weights, on the same mini-batches. The learning rate rises slowly: a minimum that is
too sharp for it is left for a flatter one, so each method sits at its edge of stability when the
rise ends. A tiny random kick at every step keeps the distance from the minimum from shrinking to
nothing, from which an instability would take long to show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.func import jacrev, vmap

ALGORITHMS = ("vanilla", "sam", "msam")
"""The order of the first dimension of everything here."""


@dataclass(frozen=True)
class TinyNetwork:
    """One hidden layer of tanh units, one output, half the squared error as loss.

    Where it fits all examples, the per-example Hessians are g_i g_iᵀ and so positive semi-definite,
    as section 3 assumes; g_i is the gradient of the output.

    Args:
        num_inputs: features of an example.
        num_hidden: hidden units.
    """

    num_inputs: int
    num_hidden: int = 6

    @property
    def num_weights(self) -> int:
        """P."""
        return (self.num_inputs + 2) * self.num_hidden + 1

    def initial_weights(self, *, seed: int) -> torch.Tensor:
        """Normal with variance 1 / fan-in, biases zero; (p,), float64."""
        generator = torch.Generator().manual_seed(seed)
        weights = torch.zeros(self.num_weights, dtype=torch.float64)
        num_first = self.num_inputs * self.num_hidden
        weights[:num_first].normal_(std=self.num_inputs**-0.5, generator=generator)
        last = weights[num_first + self.num_hidden : -1]
        last.normal_(std=self.num_hidden**-0.5, generator=generator)
        return weights

    def loss(self, weights: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Mean loss, (…), of inputs (…, B, features) and targets (…, B) at weights (…, p)."""
        inputs, targets = batch
        loss: torch.Tensor = ((self.outputs(weights, inputs) - targets) ** 2).mean(-1) / 2
        return loss

    def outputs(self, weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """What the network says, (…, B), of inputs (…, B, features) at weights (…, p)."""
        num_first = self.num_inputs * self.num_hidden
        sizes = [num_first, self.num_hidden, self.num_hidden, 1]
        first, bias, last, offset = weights.split(sizes, dim=-1)
        matrix = first.unflatten(-1, (self.num_inputs, self.num_hidden))
        hidden = torch.tanh(inputs @ matrix + bias.unsqueeze(-2))
        outputs: torch.Tensor = (hidden @ last.unsqueeze(-1)).squeeze(-1) + offset
        return outputs

    def gradient(
        self, weights: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """∇ of `loss`, (…, p)."""
        leaf = weights.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(leaf, batch).sum(), leaf)
        return gradient

    def sharpness(
        self, weights: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """The largest eigenvalue of the Hessian of the loss of the batch, (…), exactly."""
        flat = weights.reshape(-1, self.num_weights)
        hessians = vmap(jacrev(jacrev(lambda one: self.loss(one, batch))))(flat)
        finite = torch.isfinite(hessians).all(-1).all(-1)
        largest = torch.full(finite.shape, torch.nan, dtype=torch.float64)
        largest[finite] = torch.linalg.eigvalsh(hessians[finite])[:, -1]
        return largest.reshape(weights.shape[:-1])


@dataclass(frozen=True)
class Ramp:
    """A learning rate that rises evenly and then stays.

    Args:
        start: η of the first step.
        end: η once `num_rising` steps are done.
        num_rising: steps of the rise.
        num_holding: steps at `end`.
    """

    start: float
    end: float
    num_rising: int
    num_holding: int

    def rate(self, step: int) -> float:
        """η of a step."""
        return self.start + (self.end - self.start) * min(1.0, step / max(1, self.num_rising))

    @property
    def num_steps(self) -> int:
        """All steps."""
        return self.num_rising + self.num_holding


@dataclass(frozen=True)
class EdgeRuns:
    """What R runs of each algorithm did.

    Attributes:
        weights: at the end, (3, R, p).
        steps: when the rest was recorded, K numbers; the end is the last.
        rates: η then, K numbers.
        sharpness: λ_max of the Hessian of the loss over all examples, (K, 3, R); not-a-number for
            a run that has diverged.
        losses: the loss over all examples, (K, 3, R).
    """

    weights: torch.Tensor
    steps: tuple[int, ...]
    rates: tuple[float, ...]
    sharpness: torch.Tensor
    losses: torch.Tensor

    @property
    def diverged(self) -> torch.Tensor:
        """Which runs were lost, (3, R): a slower rise, a lower η or a smaller ρ keeps them."""
        return ~torch.isfinite(self.losses[-1])


@dataclass(frozen=True)
class Setting:
    """What the runs are of.

    Args:
        network: the network.
        inputs: all n examples, (n, features), float64.
        targets: (n,), float64.
        batch_size: B; mini-batches are B different examples, in random order.
        micro_batches: m; micro-batches are consecutive blocks of B / m of these.
        rho: ρ of the unnormalised ascent.
        kick: length, on average, of the random step that is added to every step.
    """

    network: TinyNetwork
    inputs: torch.Tensor
    targets: torch.Tensor
    batch_size: int
    micro_batches: int
    rho: float
    kick: float = 1e-4

    def loss(self, weights: torch.Tensor) -> torch.Tensor:
        """The loss over all examples, (…), at weights (…, p)."""
        return self.network.loss(weights, (self.inputs, self.targets))

    def descend(self, weights: torch.Tensor, *, rate: float, num_steps: int) -> torch.Tensor:
        """A minimum near weights (…, p): full-batch gradient descent, then Newton's last digits.

        Gauss-Newton steps of least length bring the residuals from small to rounding, so that flat
        directions are flat: with residuals left, some curve slightly downwards.
        """
        for _ in range(num_steps):
            gradient = self.network.gradient(weights, (self.inputs, self.targets))
            weights = weights - rate * gradient
        shape = (*weights.shape[:-1], len(self.targets), self.network.num_weights)
        for _ in range(8):
            # One copy of the weights an example: their gradients are the rows of the Jacobian.
            residuals = self.network.outputs(weights, self.inputs) - self.targets
            leaf = weights.detach().unsqueeze(-2).expand(shape).clone().requires_grad_()
            outputs = self.network.outputs(leaf, self.inputs.unsqueeze(-2))
            (jacobian,) = torch.autograd.grad(outputs.sum(), leaf)
            step = torch.linalg.pinv(jacobian) @ residuals.unsqueeze(-1)
            weights = weights - step.squeeze(-1)
        return weights

    def step(
        self, weights: torch.Tensor, *, rate: float | torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """One step of SGD, SAM and mSAM at weights (3, R, p).

        Args:
            weights: of R runs of each algorithm.
            rate: η; a tensor (R, 1) gives every run its own.
            generator: of the mini-batches, one a run and the same for the three, and the kicks.
        """
        num_runs, size = weights.shape[1:]
        order = torch.rand(num_runs, len(self.inputs), generator=generator).argsort(-1)
        chosen = order[:, : self.batch_size].view(1, num_runs, self.micro_batches, -1)
        batch = (self.inputs[chosen], self.targets[chosen])
        copies = weights.unsqueeze(2).expand(-1, -1, self.micro_batches, -1)
        vanilla, sam, msam = self.network.gradient(copies, batch)
        ascent = torch.stack(
            [torch.zeros_like(vanilla), sam.mean(1, keepdim=True).expand_as(sam), msam]
        )
        update = self.network.gradient(copies + self.rho * ascent, batch).mean(2)
        noise = torch.randn(1, num_runs, size, generator=generator, dtype=weights.dtype)
        moved: torch.Tensor = weights - rate * update + self.kick / size**0.5 * noise
        return moved


def run_to_edge(
    setting: Setting,
    weights: torch.Tensor,
    *,
    ramp: Ramp,
    seed: int = 0,
    record_every: int = 100,
    report: Callable[[int], None] = lambda step: None,
) -> EdgeRuns:
    """Runs SGD, SAM and mSAM from the same weights while the learning rate rises.

    Args:
        setting: network, examples, B, m and ρ.
        weights: where R runs begin, (R, p): minima, best.
        ramp: the learning rate.
        seed: of mini-batches and kicks.
        record_every: steps between two records; the Hessian is exact and costs some steps' time.
        report: called with the number of steps at every record.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = weights.expand(len(ALGORITHMS), *weights.shape)
    examples = (setting.inputs, setting.targets)
    records: list[tuple[int, float, torch.Tensor, torch.Tensor]] = []
    for step in range(ramp.num_steps + 1):
        rate = ramp.rate(step)
        if step % record_every == 0 or step == ramp.num_steps:
            losses = setting.loss(weights)
            records.append((step, rate, setting.network.sharpness(weights, examples), losses))
            report(step)
        if step < ramp.num_steps:
            weights = setting.step(weights, rate=rate, generator=generator)
    steps, rates, sharpness, all_losses = zip(*records, strict=True)
    return EdgeRuns(weights, steps, rates, torch.stack(sharpness), torch.stack(all_losses))
