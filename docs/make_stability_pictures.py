"""Draws the pictures of docs/stability.md and prints its numbers, in half a minute on an idle core.

python docs/make_stability_pictures.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
from math import sqrt
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from sklearn.datasets import load_digits

from msam_scale.flatness.edge_runs import (
    ALGORITHMS,
    EdgeRuns,
    Ramp,
    Setting,
    TinyNetwork,
    run_to_edge,
)
from msam_scale.flatness.example_hessians import example_hessians
from msam_scale.flatness.stability import (
    alignment,
    check_stability,
    edge_of_stability,
    linearize,
    spectral_norm,
)

NAMES = {"vanilla": "SGD", "sam": "SAM", "msam": "mSAM"}
COLOURS = {"vanilla": "tab:blue", "sam": "tab:orange", "msam": "tab:green"}
NUM_RUNS = 5
# Batch size and ρ; small batches diverge at the larger ρ.
PANELS = ((16, 0.3), (8, 0.3), (4, 0.1))


def digits(num_examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Threes (+1) and eights (−1) of scikit-learn's digits, pooled to 4 × 4 pixels."""
    data = load_digits()
    images, labels = torch.tensor(data.images), torch.tensor(data.target)
    chosen = ((labels == 3) | (labels == 8)).nonzero().squeeze(1)[:num_examples]
    pooled = torch.nn.functional.avg_pool2d(images[chosen].unsqueeze(1), 2).flatten(1)
    inputs = pooled - pooled.mean(0)
    inputs = 3 * inputs / inputs.norm(dim=1).mean()
    return inputs, torch.where(labels[chosen] == 3, 1.0, -1.0).double()


def hessians_at(setting: Setting, weights: torch.Tensor) -> torch.Tensor:
    """H_i of every example, (n, p, p)."""
    return example_hessians(
        setting.network.loss, weights=weights, batch=(setting.inputs, setting.targets)
    )


def setting_of(batch_size: int, *, rho: float) -> Setting:
    """16 digits, m = 4."""
    inputs, targets = digits(16)
    network = TinyNetwork(inputs.shape[1])
    return Setting(network, inputs, targets, batch_size, micro_batches=4, rho=rho, kick=1e-5)


def minima() -> torch.Tensor:
    """Where the runs begin, (R, p); the loss over all digits does not depend on B, m and ρ.

    Seed 0 is left out: its minimum is flat enough for every learning rate here, so it would sit
    below the edge of SGD from beginning to end.
    """
    setting = setting_of(16, rho=0.0)
    starts = [setting.network.initial_weights(seed=seed) for seed in range(1, NUM_RUNS + 1)]
    return setting.descend(torch.stack(starts), rate=0.2, num_steps=2500)


def share_that_left(setting: Setting, minimum: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """Of 8 runs at each learning rate, the share that left the minimum: (3, rates).

    A run has left once it is further from the minimum than 0.1 at any of 300 steps; it begins 0.001
    away.
    """
    num_repeats = 8
    repeated = rates.repeat_interleave(num_repeats).unsqueeze(1)
    generator = torch.Generator().manual_seed(1)
    offset = torch.randn(len(repeated), len(minimum), generator=generator, dtype=torch.float64)
    start = minimum + 1e-3 * offset / offset.norm(dim=1, keepdim=True)
    weights = start.expand(3, -1, -1)
    left = torch.zeros(weights.shape[:2], dtype=torch.bool)
    for _ in range(300):
        weights = setting.step(weights, rate=repeated, generator=generator)
        # A diverged run is at no distance: not-a-number is not near either.
        left |= ~((weights - minimum).norm(dim=-1) < 0.1)
    return left.view(3, len(rates), num_repeats).double().mean(-1)


def draw_theorem_one(out: Path, minimum: torch.Tensor) -> None:
    """Theorem 3.1: the conditions at one minimum, and which runs really leave it."""
    setting = setting_of(8, rho=0.3)
    lines = linearize(hessians_at(setting, minimum), batch_size=8, micro_batches=4, rho=0.3)
    print(f"minimum: loss {float(setting.loss(minimum)):.2g}")
    rates = torch.linspace(0.1, 0.6, 26, dtype=torch.float64)
    shares = share_that_left(setting, minimum, rates)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for index, name in enumerate(ALGORITHMS):
        checks = [check_stability(getattr(lines, name), learning_rate=float(r)) for r in rates]
        colour = COLOURS[name]
        left.plot(rates, [c.mean_bound / 2 for c in checks], color=colour, label=NAMES[name])
        left.plot(rates, [c.variance_bound for c in checks], color=colour, linestyle=":")
        right.plot(rates, shares[index], color=colour, label=NAMES[name])
        method = getattr(lines, name)
        by_condition = min(
            2 / spectral_norm(method.jacobian), spectral_norm(method.covariance) ** -0.5
        )
        right.axvline(by_condition, color=colour, linestyle="--", linewidth=1)
        print(
            f"{NAMES[name]}: λ₁(J*) {spectral_norm(method.jacobian):.3f}, λ₁(Σ) "
            f"{spectral_norm(method.covariance):.3f}; stable by (12) up to η {by_condition:.3f}, "
            f"by (11) at {_last(rates, [c.mean_square_stable for c in checks])}; no run left up to "
            f"{_last(rates, (shares[index] == 0).tolist())}, all did from "
            f"{float(rates[(shares[index] < 1).sum()]):.2f}"
        )
    right.plot([], [], "k--", linewidth=1, label="unstable by (13) from here")
    left.axhline(1, color="black", linewidth=0.8)
    _label(left, "learning rate η", "solid: η λ₁(J*) / 2    dotted: η² λ₁(Σ)", "Conditions (13)")
    _label(right, "learning rate η", "share of runs that left", "Runs from the same minimum")
    figure.savefig(out / "stability_theorem_1.png", dpi=110)


def _last(rates: torch.Tensor, held: list[bool]) -> str:
    """The last of the rising learning rates up to which something held at every one."""
    num_held = held.index(False) if False in held else len(held)
    return f"{float(rates[num_held - 1]):.2f}" if num_held else "none"


def draw_theorem_two(out: Path, starts: torch.Tensor) -> None:
    """Theorem 3.2: λ₁ of the Hessian as the learning rate rises, at three batch sizes."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
    for axis, (batch_size, rho) in zip(axes, PANELS, strict=True):
        setting = setting_of(batch_size, rho=rho)
        ramp = Ramp(0.15, 0.8, num_rising=3300, num_holding=600)
        runs = run_to_edge(setting, starts, ramp=ramp, record_every=150)
        for index, name in enumerate(ALGORITHMS):
            curves = runs.sharpness[:, index]
            axis.plot(runs.steps, curves, color=COLOURS[name], linewidth=0.8)
            axis.plot([], [], color=COLOURS[name], label=NAMES[name])
        edges = [2 / rate for rate in runs.rates]
        axis.plot(runs.steps, edges, "k--", linewidth=1, label="λ = 2/η")
        sam = [(sqrt(1 + 4 * rho * edge) - 1) / (2 * rho) for edge in edges]
        axis.plot(runs.steps, sam, "k:", linewidth=1, label="λ + ρλ² = 2/η")
        axis.set_ylim(0, 4.5)
        title = f"B = {batch_size} of 16, m = 4, ρ = {rho}"
        _label(axis, "step (η rises from 0.15 to 0.8)", "λ₁ of the Hessian", title)
        tell_edges(setting, runs)
    figure.savefig(out / "stability_theorem_2.png", dpi=100)


def tell_edges(setting: Setting, runs: EdgeRuns) -> None:
    """Prints where the runs ended."""
    rate = runs.rates[-1]
    kept = runs.losses[-1][~runs.diverged]
    print(f"B = {setting.batch_size}, ρ {setting.rho}, η {rate:.3g}, largest loss {kept.max():.1g}")
    for index, name in enumerate(ALGORITHMS):
        there = ~runs.diverged[index]
        sharpness = runs.sharpness[-1, index, there]
        checks, fits = [], []
        for weights in runs.weights[index, there]:
            lines = linearize(
                hessians_at(setting, weights),
                batch_size=setting.batch_size,
                micro_batches=setting.micro_batches,
                rho=setting.rho,
            )
            checks.append(check_stability(getattr(lines, name), learning_rate=rate))
            if lines.sampling.batch_variance:
                fits.append(alignment(lines.vanilla))
        means = [check.mean_bound for check in checks]
        variances = [check.variance_bound for check in checks]
        print(
            f"  {NAMES[name]}: {len(checks)} of {len(there)} runs, "
            f"λ₁ {float(sharpness.mean()):.3f} ± {float(sharpness.std()):.3f}, "
            f"η λ₁(J*) {min(means):.3f} to {max(means):.3f}, "
            f"η² λ₁(Σ) {min(variances):.3f} to {max(variances):.3f}"
        )
        if fits:
            beta = sum(fit.beta for fit in fits) / len(fits)
            edge = edge_of_stability(lines.sampling, beta=beta, rho=setting.rho, learning_rate=rate)
            misfit = sum(fit.misfit for fit in fits) / len(fits)
            print(
                f"    H̄ = β Σ₁ there: β {beta:.1f}, misfit {misfit:.2f}; "
                f"Theorem 3.2's λ₁ with this β: {getattr(edge, name):.3f}"
            )
    complete = runs.sharpness[-1][:, ~runs.diverged.any(0)]
    ordered = (complete.diff(dim=0) <= 0).all(0)
    print(f"  in the order of Theorem 3.2: {int(ordered.sum())} of {len(ordered)} starts")


def _label(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8)


def main() -> None:
    """Draws both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder of the PNGs"
    )
    out: Path = parser.parse_args().out
    mpl.use("agg")
    torch.set_num_threads(1)
    starts = minima()
    draw_theorem_one(out, starts[0])
    draw_theorem_two(out, starts)


if __name__ == "__main__":
    main()
