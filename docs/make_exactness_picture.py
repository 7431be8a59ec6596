"""Draws the picture of docs/exactness.md and prints its numbers, in a few minutes on one core.

python docs/make_exactness_picture.py [--out FOLDER] [--steps N]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from sklearn.datasets import load_digits

import msam_scale
from msam_scale.config import load_config
from msam_scale.engine import Engine
from msam_scale.models import ModelRequest, build_model

CONFIGS = Path(__file__).parents[1] / "configs"
NUM_TRAINING = 1437
BATCH_SIZE, MICRO_BATCHES = 16, 2
# The layouts: whole micro-batches of 8 samples, and 4 samples of them at a time.
CHUNKS = (8, 4)
# Okabe and Ito's colours, which stay apart for the colour-blind; dashes where colours are not seen.
STYLES = {
    "float32": ("#0072B2", "solid"),
    "float64": ("#009E73", "dashed"),
    "bfloat16": ("#D55E00", "dotted"),
}
# Two runs are called parted once they differ by this part of their weights.
PARTED = 0.01
# The steps of the page's table.
SHOWN = (1, 10, 50, 100, 500)


@dataclass(frozen=True)
class Net:
    """A net of the quickstarts, made small enough for a minute.

    Attributes:
        title: of its panel.
        config: the quickstart.
        overrides: what makes it small.
    """

    title: str
    config: str
    overrides: tuple[str, ...]


NETS = (
    Net(
        "Wide ResNet: ReLU, BatchNorm over 4 samples",
        "quickstart.yaml",
        ("model.name=wrn-10-1",),
    ),
    Net(
        "Vision transformer: GELU, LayerNorm",
        "quickstart_vit.yaml",
        (
            "model.args.embed_dim=32",
            "model.args.num_heads=2",
            "model.args.depth=1",
            "model.args.patch_size=4",
        ),
    ),
)


@dataclass
class Pair:
    """The same training on two layouts.

    Attributes:
        differences: of the weights after each step, ‖w_a - w_b‖ / ‖w_a‖.
        losses: of both runs at each step.
        accuracies: of both runs on the digits that were not trained on.
    """

    differences: list[float] = field(default_factory=list)
    losses: list[tuple[float, ...]] = field(default_factory=list)
    accuracies: tuple[float, ...] = ()


def digits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Scikit-learn's digits, mixed: (n, 1, 8, 8) and (n,)."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=dtype).unsqueeze(1) / 16
    return images[order], torch.tensor(data.target)[order]


def mini_batches(num_steps: int) -> Iterator[torch.Tensor]:
    """Positions of the samples of each step: whole epochs, each in an order of its own."""
    generator = torch.Generator().manual_seed(1)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(num_steps):
        if len(order) < BATCH_SIZE:
            order = torch.randperm(NUM_TRAINING, generator=generator)
        yield order[:BATCH_SIZE]
        order = order[BATCH_SIZE:]


def engine_for(net: Net, *, precision: str, chunk: int, num_steps: int) -> Engine:
    """The quickstart's engine, with the smaller net and mini-batch."""
    overrides = [
        *net.overrides,
        f"precision={precision}",
        f"batch.size={BATCH_SIZE}",
        f"objective.micro_batches={MICRO_BATCHES}",
        f"batch.chunk={chunk}",
    ]
    config = load_config(CONFIGS / net.config, overrides=overrides)
    request = ModelRequest(str(config.model.name), 10, 1, arguments=config.model.args)
    model = build_model(config.model.source, request, seed=config.run.seed)
    return msam_scale.initialize(model, config=config, num_steps=num_steps)


def weights_of(engine: Engine) -> torch.Tensor:
    """All weights in one vector of float64."""
    return torch.cat([p.detach().double().flatten() for p in engine.module.parameters()])


def train(net: Net, *, precision: str, num_steps: int) -> Pair:
    """Trains on both layouts, step by step side by side."""
    images, labels = digits(torch.float64 if precision == "float64" else torch.float32)
    engines = [
        engine_for(net, precision=precision, chunk=chunk, num_steps=num_steps) for chunk in CHUNKS
    ]
    assert torch.equal(*(weights_of(engine) for engine in engines))
    pair = Pair()
    for chosen in mini_batches(num_steps):
        steps = [engine.train_step((images[chosen], labels[chosen])) for engine in engines]
        first, second = (weights_of(engine) for engine in engines)
        pair.differences.append(float((first - second).norm() / first.norm()))
        pair.losses.append(tuple(step.loss for step in steps))
    pair.accuracies = tuple(
        accuracy(engine, images[NUM_TRAINING:], labels[NUM_TRAINING:]) for engine in engines
    )
    return pair


@torch.no_grad()
def accuracy(engine: Engine, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers, in percent."""
    engine.module.eval()
    right = engine.module(images).argmax(1) == labels
    return 100 * float(right.double().mean())


def row(net: Net, precision: str, pair: Pair) -> str:
    """A row of the page's table."""
    at = [f"{pair.differences[step - 1]:.0e}" for step in SHOWN if step <= len(pair.differences)]
    parted = next((i for i, d in enumerate(pair.differences, start=1) if d > PARTED), "never")
    losses = torch.tensor(pair.losses[-50:]).mean(0).tolist()
    cells = [
        net.title.partition(":")[0],
        precision,
        *at,
        str(parted),
        " and ".join(f"{loss:.3f}" for loss in losses),
        " and ".join(f"{share:.1f} %" for share in pair.accuracies),
    ]
    return f"| {' | '.join(cells)} |"


def draw(axis: Axes, net: Net, pairs: dict[str, Pair]) -> None:
    """One panel."""
    for precision, pair in pairs.items():
        colour, style = STYLES[precision]
        steps = range(1, len(pair.differences) + 1)
        # What is exactly equal has no place on a logarithmic axis.
        values = [value or float("nan") for value in pair.differences]
        axis.plot(steps, values, color=colour, linestyle=style, linewidth=2, label=precision)
    axis.set_yscale("log")
    axis.set_ylim(1e-17, 10)
    axis.grid(alpha=0.3)
    axis.set_title(net.title)
    axis.set_xlabel("optimizer step")


def main() -> None:
    """Trains, tells and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the PNG")
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of each run")
    arguments = parser.parse_args()
    mpl.use("agg")
    torch.set_num_threads(1)
    plt.rcParams["font.size"] = 13
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    for axis, net in zip(axes, NETS, strict=True):
        pairs = {}
        for precision in STYLES:
            pairs[precision] = train(net, precision=precision, num_steps=arguments.steps)
            print(row(net, precision, pairs[precision]), flush=True)
        draw(axis, net, pairs)
    axes[0].set_ylabel("difference of the weights\n‖w_a − w_b‖ / ‖w_a‖")
    axes[1].legend(loc="center right")
    figure.suptitle("Two layouts of one training: how far their weights are apart", fontsize=14)
    figure.savefig(arguments.out / "exactness_drift.png", dpi=100)


if __name__ == "__main__":
    main()
