"""Section 3 as code: Lemma 3.4, Theorems 3.1 and 3.2, against enumeration and against real runs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import permutations, product

import pytest
import torch
from sklearn.datasets import load_digits

from msam_scale.flatness.edge_runs import (
    ALGORITHMS,
    EdgeRuns,
    Ramp,
    Setting,
    TinyNetwork,
    run_to_edge,
)
from msam_scale.flatness.example_hessians import example_hessians, model_hessians
from msam_scale.flatness.stability import (
    Alignment,
    Linearization,
    LinearizedMethod,
    alignment,
    batch_jacobian,
    check_stability,
    edge_of_stability,
    linearize,
    spectral_norm,
)

BOUND = 1e-10
# n, B, m, with replacement, p
PROBLEMS = (
    (5, 4, 2, False, 3),
    (6, 4, 4, False, 2),
    (5, 3, 3, False, 3),
    (6, 2, 1, False, 3),
    (4, 4, 2, False, 3),
    (1, 1, 1, False, 2),
    (4, 4, 2, True, 2),
    (3, 4, 4, True, 3),
    (2, 6, 2, True, 2),
)


def random_hessians(num_examples: int, size: int, *, seed: int = 0) -> torch.Tensor:
    """Symmetric PSD matrices of rank 1 or 2 and different sizes, (n, p, p)."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(num_examples, size, 2, generator=generator, dtype=torch.float64)
    factors[::2, :, 1] = 0
    factors *= 2 * torch.rand(num_examples, 1, 1, generator=generator, dtype=torch.float64)
    return factors @ factors.mT


def enumerated(
    hessians: torch.Tensor, batch_size: int, micro_batches: int, rho: float, replacement: bool
) -> dict[str, torch.Tensor]:
    """J*, Σ and Ω by the definitions: every ordered mini-batch, cut into micro-batches in order."""
    examples = range(len(hessians))
    batches = torch.tensor(
        list(
            product(examples, repeat=batch_size)
            if replacement
            else permutations(examples, batch_size)
        )
    )
    size = hessians.shape[-1]
    parts = hessians[batches].view(len(batches), micro_batches, -1, size, size).mean(2)
    whole = parts.mean(1)
    jacobians = {
        "vanilla": whole,
        "sam": whole + rho * whole @ whole,
        "msam": whole + rho * (parts @ parts).mean(1),
    }
    found = {}
    for name, values in jacobians.items():
        mean = values.mean(0)
        found[f"{name} J"] = mean
        found[f"{name} Σ"] = ((values - mean) @ (values - mean)).mean(0)
    within = parts - whole.unsqueeze(1)
    found["Ω"] = rho * (within @ within).mean((0, 1))
    return found


def computed(lines: Linearization) -> dict[str, torch.Tensor]:
    """The same quantities out of `linearize`."""
    found = {"Ω": lines.omega}
    for name in ALGORITHMS:
        method: LinearizedMethod = getattr(lines, name)
        found |= {f"{name} J": method.jacobian, f"{name} Σ": method.covariance}
    return found


def largest_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[key] - expected[key]).abs().max()) for key in expected)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("rho", [0.0, 0.37])
def test_lemma_3_4_equals_enumeration(problem: tuple[int, int, int, bool, int], rho: float) -> None:
    n, batch_size, micro_batches, replacement, size = problem
    hessians = random_hessians(n, size)
    lines = linearize(
        hessians,
        batch_size=batch_size,
        micro_batches=micro_batches,
        rho=rho,
        replacement=replacement,
    )
    expected = enumerated(hessians, batch_size, micro_batches, rho, replacement)
    assert largest_error(computed(lines), expected) < BOUND


def test_lemma_3_4_identities() -> None:
    """(22) and (23) as the paper prints them, and (30), Lemma 3.1."""
    hessians, rho, rate = random_hessians(7, 4), 0.21, 0.3
    lines = linearize(hessians, batch_size=4, micro_batches=2, rho=rho)
    mean = hessians.mean(0)
    sam = mean + rho * mean @ mean + rho * lines.vanilla.covariance
    torch.testing.assert_close(lines.sam.jacobian, sam, rtol=0, atol=BOUND)
    torch.testing.assert_close(lines.msam.jacobian, sam + lines.omega, rtol=0, atol=BOUND)

    draws = torch.tensor(list(permutations(range(7), 4)))
    parts = hessians[draws].view(len(draws), 2, 2, 4, 4).mean(2)
    jacobians = parts.mean(1) + rho * (parts @ parts).mean(1)
    one = batch_jacobian(hessians[draws[9]], micro_batches=2, rho=rho)
    torch.testing.assert_close(one, jacobians[9], rtol=0, atol=BOUND)
    contraction = torch.eye(4, dtype=torch.float64) - rate * jacobians
    growth = spectral_norm((contraction @ contraction).mean(0))
    assert check_stability(lines.msam, learning_rate=rate).mean_square == pytest.approx(
        growth, abs=BOUND
    )


@cache
def digits(num_examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Threes (+1) and eights (−1), pooled to 4 × 4 pixels, centred, of mean length 3."""
    data = load_digits()
    images, labels = torch.tensor(data.images), torch.tensor(data.target)
    chosen = ((labels == 3) | (labels == 8)).nonzero().squeeze(1)[:num_examples]
    pooled = torch.nn.functional.avg_pool2d(images[chosen].unsqueeze(1), 2).flatten(1)
    inputs = pooled - pooled.mean(0)
    inputs = 3 * inputs / inputs.norm(dim=1).mean()
    return inputs, torch.where(labels[chosen] == 3, 1.0, -1.0).double()


@cache
def setting() -> Setting:
    inputs, targets = digits(16)
    network = TinyNetwork(inputs.shape[1], num_hidden=6)
    return Setting(network, inputs, targets, batch_size=16, micro_batches=4, rho=0.3)


@cache
def minima() -> torch.Tensor:
    starts = [setting().network.initial_weights(seed=seed) for seed in (1, 2)]
    return setting().descend(torch.stack(starts), rate=0.2, num_steps=1500)


@cache
def trained_hessians(seed: int) -> torch.Tensor:
    """Per-example Hessians of a network that fits 16 digits, (16, p, p)."""
    weights = minima()[seed]
    assert float(setting().loss(weights)) < 1e-20
    batch = (setting().inputs, setting().targets)
    hessians = example_hessians(setting().network.loss, weights=weights, batch=batch)
    assert float(torch.linalg.eigvalsh(hessians).min()) > -BOUND  # PSD, as section 3 assumes
    return hessians


def _smallest_eigenvalue(matrix: torch.Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix).min())


@pytest.mark.parametrize("source", ["random", "trained"])
@pytest.mark.parametrize("seed", [0, 1])
def test_theorem_3_1(source: str, seed: int) -> None:
    """J₃* ⪰ J₂* ⪰ J₁*; so what is unstable by η λ₁(J*) > 2 stays so from SGD to SAM to mSAM."""
    hessians = trained_hessians(seed) if source == "trained" else random_hessians(16, 9, seed=seed)
    for batch_size, micro_batches in ((4, 2), (8, 8), (16, 4), (8, 1)):
        lines = linearize(hessians, batch_size=batch_size, micro_batches=micro_batches, rho=0.3)
        jacobians = [getattr(lines, name).jacobian for name in ALGORITHMS]
        assert _smallest_eigenvalue(jacobians[1] - jacobians[0]) > -BOUND
        assert _smallest_eigenvalue(jacobians[2] - jacobians[1]) > -BOUND
        first, second, third = (spectral_norm(jacobian) for jacobian in jacobians)
        assert first <= second + BOUND
        assert second <= third + BOUND
        assert first < second - 1e-3  # the order is strict here
        assert (second < third - 1e-4) == (micro_batches > 1)
        for rate in torch.linspace(0.1, 1.6, 10).tolist():
            checks = [
                check_stability(getattr(lines, name), learning_rate=rate) for name in ALGORITHMS
            ]
            left = [check.mean_bound > 2 for check in checks]
            assert left == sorted(left)
            # (11) implies (12): the necessary condition never refuses what (11) allows.
            assert all(check.stable for check in checks if check.mean_square <= 1)


def test_theorem_3_1_can_fail_without_assumption_3_1() -> None:
    """λ₁(Σ) is not ordered: here SAM is unstable by (13), and mSAM stable."""
    hessians = torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.float64).view(-1, 1, 1)
    lines = linearize(hessians, batch_size=2, micro_batches=2, rho=0.3)
    expected = enumerated(hessians, 2, 2, 0.3, replacement=False)
    assert largest_error(computed(lines), expected) < BOUND
    sam = check_stability(lines.sam, learning_rate=2.5)
    msam = check_stability(lines.msam, learning_rate=2.5)
    assert not sam.stable
    assert sam.variance_bound > 1
    assert msam.stable
    # By the exact condition (11) both are unstable.
    assert not sam.mean_square_stable
    assert not msam.mean_square_stable


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_alpha_makes_14_and_12_one_condition(beta: float) -> None:
    """With J* = β Σ, α = max{η/2, η²/β} is right and the printed η²β is not."""
    jacobian = random_hessians(4, 3).mean(0)
    method = LinearizedMethod(jacobian, jacobian / beta)
    fitted = alignment(method)
    assert fitted.beta == pytest.approx(beta, rel=BOUND)
    assert fitted.misfit < BOUND
    printed_disagrees = False
    for rate in torch.logspace(-3, 1, 60).tolist():
        stable = check_stability(method, learning_rate=rate).stable
        assert stable == (fitted.edge_ratio(method, learning_rate=rate) <= 1)
        printed = max(rate / 2, rate**2 * beta)
        printed_disagrees |= stable != (printed * spectral_norm(jacobian) <= 1)
    assert printed_disagrees


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize(("scale", "rho"), [(0.3, 0.2), (1.7, 0.2), (8.0, 0.05)])
def test_theorem_3_2_solves_the_edge_condition(
    micro_batches: int, replacement: bool, scale: float, rho: float
) -> None:
    """Examples with H̄ = β Σ₁ and the η that puts them at the edge: the computed λ₁ is theirs."""
    # Σ₁ is proportional to H̄: every example's Hessian is 0 or one and the same projection.
    pattern = torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=torch.float64).view(-1, 1, 1)
    hessians = scale * pattern * torch.diag(torch.tensor([1.0, 1, 0], dtype=torch.float64))
    lines = linearize(
        hessians, batch_size=4, micro_batches=micro_batches, rho=rho, replacement=replacement
    )
    fitted = alignment(lines.vanilla)
    assert fitted.misfit < BOUND
    for name in ALGORITHMS:
        method: LinearizedMethod = getattr(lines, name)
        # The η that puts this minimum at the edge: α = 1 / λ₁(J*), and α = max{η/2, η²/β}.
        alpha = 1 / spectral_norm(method.jacobian)
        rate = min(2 * alpha, (alpha * fitted.beta) ** 0.5)
        assert fitted.edge_ratio(method, learning_rate=rate) == pytest.approx(1, abs=BOUND)
        edge = edge_of_stability(lines.sampling, beta=fitted.beta, rho=rho, learning_rate=rate)
        assert getattr(edge, name) == pytest.approx(spectral_norm(lines.hessian), abs=BOUND)
        assert edge.vanilla > edge.sam >= edge.msam
        assert (edge.sam > edge.msam) == (micro_batches > 1)


@cache
def runs_at_the_edge() -> EdgeRuns:
    ramp = Ramp(0.15, 0.8, num_rising=1400, num_holding=300)
    return run_to_edge(replace(setting(), kick=1e-3), minima(), ramp=ramp, record_every=850)


def test_measured_sharpness_is_in_the_order_of_theorem_3_2() -> None:
    """SGD, SAM and mSAM, run until they sit at the edge: λ_max falls from one to the next."""
    runs = runs_at_the_edge()
    assert not runs.diverged.any()
    assert float(runs.losses[-1].max()) < 1e-3
    vanilla, sam, msam = runs.sharpness[-1]
    assert bool((runs.sharpness[0] * 0.8 > 2).all())  # all began above the edge of the last η
    assert bool((sam < 0.9 * vanilla).all())
    assert bool((msam < 0.99 * sam).all())
    # Full batches: SGD's edge is 2/η, SAM's λ + ρ λ² = 2/η.
    assert vanilla.numpy() == pytest.approx(2.5, rel=0.1)
    assert (sam + 0.3 * sam**2).numpy() == pytest.approx(2.5, rel=0.05)


def test_the_edge_is_where_the_linearization_has_it() -> None:
    """At the end of every run η λ₁(J*) is at 2, with the J* of its own algorithm."""
    runs = runs_at_the_edge()
    batch = (setting().inputs, setting().targets)
    for index, name in enumerate(ALGORITHMS):
        for weights in runs.weights[index]:
            hessians = example_hessians(setting().network.loss, weights=weights, batch=batch)
            lines = linearize(hessians, batch_size=16, micro_batches=4, rho=0.3)
            bounds = {
                other: check_stability(getattr(lines, other), learning_rate=0.8).mean_bound
                for other in ALGORITHMS
            }
            assert bounds[name] == pytest.approx(2, rel=0.1)
            # Negative control: another algorithm's J* would put the edge elsewhere.
            if name != "vanilla":
                assert bounds["vanilla"] < 1.5


def test_model_hessians_equal_those_of_the_flat_weights() -> None:
    """A float32 module of the same network, in the order of the module's parameters."""
    network, weights = setting().network, minima()[0]
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 6), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(6, 1)
    )
    with torch.no_grad():
        model[0].weight.copy_(weights[:96].view(16, 6).T)
        model[0].bias.copy_(weights[96:102])
        model[3].weight.copy_(weights[102:108].view(1, 6))
        model[3].bias.copy_(weights[108:])
    single = weights.float().double()  # what the module holds

    def squared(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return ((model(batch[0]).squeeze(-1) - batch[1]) ** 2).mean() / 2

    batch = (setting().inputs, setting().targets)
    expected = example_hessians(network.loss, weights=single, batch=batch)
    order = torch.cat([torch.arange(96).view(16, 6).T.reshape(-1), torch.arange(96, 109)])
    found = model_hessians(model, batch=batch, loss_fn=squared)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected[:, order][:, :, order], rtol=0, atol=BOUND)
    assert model.training
    assert model[0].weight.dtype == torch.float32


def test_mistakes_are_named() -> None:
    hessians = random_hessians(4, 2)
    for arguments, message in (
        ({"batch_size": 5, "micro_batches": 1}, "more than the 4 examples"),
        ({"batch_size": 4, "micro_batches": 3}, r"divides it: \[1, 2, 4\]"),
        ({"batch_size": 0, "micro_batches": 1}, "batch_size is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            linearize(hessians, **arguments, rho=0.1)
    with pytest.raises(ValueError, match="rho is -1"):
        linearize(hessians, batch_size=2, micro_batches=1, rho=-1)
    with pytest.raises(ValueError, match="not symmetric"):
        linearize(hessians.triu(), batch_size=2, micro_batches=1, rho=0.1)
    with pytest.raises(ValueError, match="not finite"):
        linearize(hessians / 0, batch_size=2, micro_batches=1, rho=0.1)
    with pytest.raises(ValueError, match="shape"):
        linearize(hessians[0], batch_size=2, micro_batches=1, rho=0.1)
    full = linearize(hessians, batch_size=4, micro_batches=2, rho=0.1)
    with pytest.raises(ValueError, match="Σ is zero"):
        alignment(full.vanilla)
    with pytest.raises(ValueError, match="no β"):
        edge_of_stability(full.sampling, beta=1.0, rho=0.1, learning_rate=0.1)
    with pytest.raises(ValueError, match="learning_rate is 0"):
        Alignment(1.0).alpha(learning_rate=0)
    with pytest.raises(ValueError, match="largest_num_bytes"):
        example_hessians(
            setting().network.loss,
            weights=minima()[0],
            batch=(setting().inputs, setting().targets),
            largest_num_bytes=1000,
        )
