"""Eigenvalues, traces and sharpness against exact Hessians, a library, and under every sharding."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_models import NUM_CLASSES, build_model, cross_entropy, mini_batch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from msam_scale.flatness.hessian_vector import ExactCurvature, random_signs
from msam_scale.flatness.lanczos import largest_eigenvalues
from msam_scale.flatness.sharpness import m_sharpness, rho_sharpness
from msam_scale.flatness.trace import estimate_trace

# `torch.func.hessian` scripts functions, and so does what curvlinops imports.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")


@pytest.fixture(autouse=True, scope="module")
def no_engine_of_before() -> None:
    """A ZeRO-3 engine that still lives would have replaced `torch.nn.functional.linear`."""
    gc.collect()


def _tanh_network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.AvgPool1d(16),
        nn.Linear(12, 8),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(8, NUM_CLASSES),
    )


def _batch_norm_network() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 6, kernel_size=3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, NUM_CLASSES),
    )
    network(torch.randn(64, 3, 8, 8))  # running statistics unlike those of any batch below
    return network


def _vision_transformer() -> nn.Module:
    return VisionTransformer(
        img_size=8,
        patch_size=4,
        embed_dim=4,
        depth=1,
        num_heads=2,
        mlp_ratio=1.0,
        num_classes=NUM_CLASSES,
        drop_path_rate=0.3,
    )


SMALL: dict[str, Callable[[], nn.Module]] = {
    "tanh": _tanh_network,
    "batch norm": _batch_norm_network,
    "vision transformer": _vision_transformer,
}


def _small(name: str) -> nn.Module:
    """In training mode, with weights away from the symmetric ones of an initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = SMALL[name]().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _batches(sizes: Sequence[int] = (5, 12, 7)) -> list[tuple[torch.Tensor, ...]]:
    """Batches of unequal sizes, whose mean loss is not the mean of their losses."""
    return [tuple(part[:size] for part in mini_batch(step)) for step, size in enumerate(sizes)]


def _exact_hessian(model: nn.Module, batches: Any) -> torch.Tensor:
    """Row by row, of the loss over all samples together.

    Not `torch.func.hessian`: of a model with LayerNorm its result is not even symmetric (torch
    2.14), neither forward over reverse nor reverse over reverse, both of which use `vmap`.
    """
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    names, values = zip(*model.named_parameters(), strict=True)
    sizes = [value.numel() for value in values]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = [part.view_as(value) for part, value in zip(flat.split(sizes), values, strict=True)]
        logits = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (images,))
        return F.cross_entropy(logits, labels)

    flat = torch.cat([value.detach().flatten() for value in values])
    model.eval()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian: torch.Tensor = torch.autograd.functional.hessian(loss, flat)
    model.train()
    return hessian


def test_the_exact_hessian_is_that_of_torch_func() -> None:
    """Where there is no LayerNorm."""
    model, batches = _small("tanh"), _batches()
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    parameters = {name: value.detach() for name, value in model.eval().named_parameters()}

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (images,)), labels)

    blocks = torch.func.hessian(loss)(parameters)
    rows = [
        torch.cat([blocks[row][column].reshape(size.numel(), -1) for column in parameters], dim=1)
        for row, size in ((name, value) for name, value in parameters.items())
    ]
    torch.testing.assert_close(
        torch.cat(rows), _exact_hessian(model, batches), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", SMALL)
def test_eigenvalues_products_and_trace_of_small_models_are_exact(name: str) -> None:
    model, batches = _small(name), _batches()
    hessian = _exact_hessian(model, batches)
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    curvature = ExactCurvature(model, loss_fn=cross_entropy, batches=batches)

    signs = curvature.random_signs(5)
    torch.testing.assert_close(curvature.product(signs), hessian @ signs, rtol=1e-9, atol=1e-11)

    found = largest_eigenvalues(curvature, num_eigenvalues=4, tolerance=1e-7)
    assert found.converged
    assert max(found.residuals) < 1e-6
    torch.testing.assert_close(torch.tensor(found.values).double(), exact[:4], rtol=1e-7, atol=0)
    for value, vector in zip(found.values, found.vectors, strict=True):
        torch.testing.assert_close(hessian @ vector, value * vector, rtol=0, atol=1e-5)

    # The estimate is that of the exact Hessian with the same signs, and unbiased.
    trace = estimate_trace(curvature, num_probes=40)
    probes = torch.stack([curvature.random_signs(number) for number in range(40)])
    forms = ((probes @ hessian) * probes).sum(1)
    assert trace.mean == pytest.approx(float(forms.mean()), rel=1e-9)
    assert trace.standard_error == pytest.approx(float(forms.std()) / 40**0.5, rel=1e-9)
    assert abs(trace.mean - float(hessian.trace())) < 4 * trace.standard_error
    assert all(module.training for module in model.modules())


def test_the_trace_is_exact_over_all_signs() -> None:
    """Of 2ⁿ sign vectors each once, the mean of zᵀHz is the trace, for any H."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    hessian = matrix + matrix.t()

    class AllSigns(_Matrix):
        def random_signs(self, seed: int) -> torch.Tensor:
            return torch.tensor([(seed >> bit & 1) * 2.0 - 1 for bit in range(4)]).double()

    trace = estimate_trace(AllSigns(hessian), num_probes=16)
    assert trace.mean == pytest.approx(float(hessian.trace()), rel=1e-12)


class _Matrix:
    """A matrix as an operator."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def product(self, vector: torch.Tensor) -> torch.Tensor:
        return self.matrix @ vector

    def inner(self, rows: Sequence[torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
        return torch.stack([row @ vector for row in rows]).double()

    def random_signs(self, seed: int) -> torch.Tensor:
        return random_signs(len(self.matrix), seed=seed).to(self.matrix.dtype)


def _with_eigenvalues(values: Sequence[float]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    size = len(values)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.t()


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([3.0, -50.0, 2.0, 1.0, 0.5, 0.0, 0.0], id="a large negative one is not it"),
        pytest.param([4.0, 0.0, 0.0, 0.0, 0.0, 0.0], id="rank one"),
        pytest.param([2.0, 2.0, 1.0, 1.0, 1.0], id="two equal ones"),
        pytest.param([-1.0, -2.0, -3.0], id="all negative"),
        pytest.param([0.0, 0.0, 0.0], id="zero"),
        pytest.param([7.0], id="one dimension"),
    ],
)
def test_lanczos_of_awkward_spectra(values: list[float]) -> None:
    num = min(3, len(values))
    found = largest_eigenvalues(_Matrix(_with_eigenvalues(values)), num_eigenvalues=num)
    assert found.converged
    assert found.values == pytest.approx(sorted(values, reverse=True)[:num], abs=1e-9)
    basis = torch.stack(found.vectors)
    torch.testing.assert_close(basis @ basis.t(), torch.eye(num).double(), atol=1e-9, rtol=0)


def test_no_eigenvalue_comes_twice_however_long_it_takes() -> None:
    """By the recurrence alone those that stand far apart would be found again and again."""
    values = [100.0, 60.0, *torch.linspace(0, 1, 78, dtype=torch.float64).tolist()]
    matrix = _Matrix(_with_eigenvalues(values))
    found = largest_eigenvalues(matrix, num_eigenvalues=4, tolerance=1e-10)
    assert found.converged
    assert found.values == pytest.approx([100, 60, 1, values[-2]], rel=1e-9)


def test_lanczos_says_when_it_has_not_converged() -> None:
    values = torch.linspace(0, 1, 200).tolist()
    found = largest_eigenvalues(_Matrix(_with_eigenvalues(values)), max_iterations=5)
    assert not found.converged
    assert found.num_products == 5
    assert found.residuals[0] > 1e-6


def test_mistakes_are_named() -> None:
    matrix = _Matrix(torch.eye(3).double())
    with pytest.raises(ValueError, match="num_eigenvalues: 0"):
        largest_eigenvalues(matrix, num_eigenvalues=0)
    with pytest.raises(ValueError, match="num_probes: 1"):
        estimate_trace(matrix, num_probes=1)
    with pytest.raises(ValueError, match="iterator"):
        ExactCurvature(_small("tanh"), loss_fn=cross_entropy, batches=iter(_batches()))
    with pytest.raises(ValueError, match="no sample"):
        ExactCurvature(_small("tanh"), loss_fn=cross_entropy, batches=[]).loss()
    with pytest.raises(ValueError, match="not finite"):
        largest_eigenvalues(_Matrix(matrix.matrix * float("nan")))


def test_a_wide_resnet_agrees_with_curvlinops() -> None:
    import curvlinops

    model = build_model("wide_resnet").double()
    batches = _batches((6, 4))
    for images, _ in batches:
        model(images)  # moves the running statistics away from 0 and 1
    model.eval()
    operator = curvlinops.HessianLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        batches,
        check_deterministic=False,
    )
    ours = ExactCurvature(model.train(), loss_fn=cross_entropy, batches=batches)
    signs = ours.random_signs(0)
    model.eval()
    torch.testing.assert_close(ours.product(signs), operator @ signs, rtol=1e-7, atol=1e-9)
    theirs = largest_eigenvalues(_Library(operator, like=signs), tolerance=1e-3)
    found = largest_eigenvalues(ours, tolerance=1e-3)
    assert found.values[0] == pytest.approx(theirs.values[0], rel=1e-8)


class _Library:
    """A curvlinops operator, whose products are its own."""

    def __init__(self, operator: Any, *, like: torch.Tensor) -> None:
        self._operator, self._like = operator, like

    def product(self, vector: torch.Tensor) -> torch.Tensor:
        return self._operator @ vector  # type: ignore[no-any-return]

    def inner(self, rows: Sequence[torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
        return torch.stack([row @ vector for row in rows]).double()

    def random_signs(self, seed: int) -> torch.Tensor:
        return random_signs(len(self._like), seed=seed).to(self._like)


def test_sharpness_is_what_it_says() -> None:
    model, batches = _small("tanh"), _batches((16, 16))
    rho = 0.05

    def rise_over(images: torch.Tensor, labels: torch.Tensor) -> float:
        model.eval()
        parameters = list(model.parameters())
        before = F.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(before, parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        kept = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(rho * gradient / norm)
            after = F.cross_entropy(model(images), labels)
            for parameter, old in zip(parameters, kept, strict=True):
                parameter.copy_(old)
        model.train()
        return float(after - before.detach())

    whole = ExactCurvature(model, loss_fn=cross_entropy, batches=batches)
    together = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    assert rho_sharpness(whole, rho=rho) == pytest.approx(rise_over(*together), rel=1e-9)
    single = [ExactCurvature(model, loss_fn=cross_entropy, batches=[batch]) for batch in batches]
    expected = sum(rise_over(*batch) for batch in batches) / 2
    assert m_sharpness(single, rho=rho) == pytest.approx(expected, rel=1e-9)
    assert m_sharpness(single, rho=rho) > rho_sharpness(whole, rho=rho)
    with pytest.raises(ValueError, match="rho"):
        rho_sharpness(whole, rho=0.0)
