"""The largest eigenvalues of a Hessian by Lanczos' method with full re-orthogonalisation.

Unlike power iteration, which finds the eigenvalue of largest magnitude, Lanczos finds the
algebraically largest ones, several at once and in far fewer Hessian-vector products (Golub and Van
Loan, Matrix Computations, chapter 10). A minimum of a network has many eigenvalues near zero and
few large ones, which stand apart and so converge first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Protocol

import torch

from data_pipelines.errors import UserError


class NotFiniteError(UserError):
    """A loss or a derivative is not finite at these weights, so there is no flatness to measure."""


class SymmetricOperator(Protocol):
    """A symmetric matrix that is only known by its products with vectors.

    Vectors are one-dimensional and laid out as the operator likes: whole, or this rank's parts.
    Every method is collective where several ranks share the vectors.
    """

    def product(self, vector: torch.Tensor) -> torch.Tensor:
        """The matrix times a vector, a new tensor."""
        ...

    def inner(self, rows: Sequence[torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
        """⟨row, vector⟩ for each row: float64 on the CPU, the same on every rank."""
        ...

    def random_signs(self, seed: int) -> torch.Tensor:
        """A vector of independent entries ±1."""
        ...


@dataclass(frozen=True)
class Eigenpairs:
    """What Lanczos found.

    Attributes:
        values: the largest eigenvalues, falling. Fewer than were asked for where the space has
            fewer dimensions.
        vectors: the eigenvector of each, of length 1, laid out as the operator's vectors.
        residuals: ‖Hy - λy‖ of each pair, measured, relative to the largest magnitude of an
            eigenvalue found. An eigenvalue of H lies no further than that from λ.
        num_products: Hessian-vector products that it took, those for the residuals not counted.
        converged: whether the residuals fell to the tolerance within the iterations.
    """

    values: list[float]
    vectors: list[torch.Tensor]
    residuals: list[float]
    num_products: int
    converged: bool


def largest_eigenvalues(
    operator: SymmetricOperator,
    *,
    num_eigenvalues: int = 1,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
    seed: int = 0,
) -> Eigenpairs:
    """The algebraically largest eigenvalues, those of a minimum being its sharpest directions.

    Stops when the residual of each pair, as the recurrence gives it, is at most `tolerance` times
    the largest magnitude of a Ritz value. The error of an eigenvalue that stands apart is of the
    order of the square of that. All vectors of the recurrence are kept, `max_iterations` of them at
    most, and each new one is made orthogonal to all others twice, so that no eigenvalue comes
    twice. Equal eigenvalues, which generic Hessians do not have, may be found once only.

    Args:
        operator: the Hessian.
        num_eigenvalues: how many.
        tolerance: of the relative residual. Products that are not exact bound what is reached.
        max_iterations: most Hessian-vector products.
        seed: of the start vector.

    Raises:
        ValueError: an argument is out of range.
        NotFiniteError: a product is not finite.
    """
    if not 1 <= num_eigenvalues <= max_iterations:
        raise ValueError(
            f"num_eigenvalues: {num_eigenvalues} is not in 1 … {max_iterations} (max_iterations)"
        )
    if tolerance <= 0:
        raise ValueError(f"tolerance: {tolerance} is not positive")
    space = _Krylov(operator, seed=seed)
    values = residuals = torch.zeros(0, dtype=torch.float64)
    combinations = torch.zeros(0, 0, dtype=torch.float64)
    converged = False
    while len(space.basis) < max_iterations and not converged and space.extend():
        values, combinations = space.eigenpairs()
        values, combinations = values[:num_eigenvalues], combinations[:, :num_eigenvalues]
        residuals = (space.last_off_diagonal * combinations[-1]).abs()
        converged = len(values) == num_eigenvalues and bool(
            (residuals <= tolerance * space.scale).all()
        )
    # A space without further dimensions is spanned: what was found is all there is.
    converged = converged or space.is_spanned
    vectors = [
        _combination(space.basis, column, like=space.basis[0])
        for column in combinations.t().tolist()
    ]
    measured = [
        _residual(operator, vector, value=value) / max(space.scale, _TINY)
        for vector, value in zip(vectors, values.tolist(), strict=True)
    ]
    return Eigenpairs(
        values=values.tolist(),
        vectors=vectors,
        residuals=measured,
        num_products=len(space.basis),
        converged=converged,
    )


_TINY = torch.finfo(torch.float64).tiny
# In a space of very few dimensions two vectors of signs are often parallel.
_NUM_DRAWS = 10


class _Krylov:
    """An orthonormal basis in which the operator is tridiagonal, one vector longer at each step.

    Attributes:
        basis: orthonormal vectors whose products are known.
        last_off_diagonal: the tridiagonal matrix's entry behind the last one.
        scale: the largest magnitude of a Ritz value.
        is_spanned: the basis spans the whole space.
    """

    def __init__(self, operator: SymmetricOperator, *, seed: int) -> None:
        self._operator = operator
        self._seed = seed
        self._diagonal: list[float] = []
        self._off_diagonal: list[float] = []
        self._next: torch.Tensor | None = None
        self.basis: list[torch.Tensor] = []
        self.last_off_diagonal = 0.0
        self.scale = 0.0
        self.is_spanned = False

    def extend(self) -> bool:
        """One more vector; False where there is no further dimension."""
        vector = self._next if self._next is not None else self._fresh()
        if vector is None:
            self.is_spanned = True
            return False
        if self.basis:
            self._off_diagonal.append(self.last_off_diagonal)
        self.basis.append(vector)
        image = self._operator.product(vector)
        before = self._norm(image)
        if not isfinite(before):
            raise NotFiniteError("a Hessian-vector product is not finite; a finite loss works")
        self._diagonal.append(float(self._operator.inner([vector], image)[0]))
        self._make_orthogonal(image)
        norm = self._norm(image)
        precision = torch.finfo(image.dtype).eps
        values = torch.linalg.eigvalsh(self._tridiagonal())
        self.scale = float(values.abs().max())
        # What is left after an invariant subspace is rounding; the next vector is drawn anew.
        is_invariant = norm <= 10 * precision * max(before, self.scale)
        self.last_off_diagonal = 0.0 if is_invariant else norm
        self._next = None if is_invariant else image.div_(norm)
        return True

    def eigenpairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ritz values, falling, and their vectors (columns) in the basis."""
        values, vectors = torch.linalg.eigh(self._tridiagonal())
        return values.flip(0), vectors.flip(1)

    def _tridiagonal(self) -> torch.Tensor:
        off = torch.tensor(self._off_diagonal, dtype=torch.float64)
        matrix = torch.diag(torch.tensor(self._diagonal, dtype=torch.float64))
        if len(off):
            matrix += torch.diag(off, 1) + torch.diag(off, -1)
        return matrix

    def _fresh(self) -> torch.Tensor | None:
        for _ in range(_NUM_DRAWS):
            vector = self._operator.random_signs(self._seed)
            self._seed += 1
            before = self._norm(vector)
            self._make_orthogonal(vector)
            norm = self._norm(vector)
            if norm > 100 * torch.finfo(vector.dtype).eps * before:
                vector.div_(norm)
                self._make_orthogonal(vector)
                return vector.div_(self._norm(vector))
        return None

    def _make_orthogonal(self, vector: torch.Tensor) -> None:
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            parts = self._operator.inner(self.basis, vector).tolist() if self.basis else []
            for one, part in zip(self.basis, parts, strict=True):
                vector.add_(one, alpha=-part)

    def _norm(self, vector: torch.Tensor) -> float:
        return sqrt(self._operator.inner([vector], vector)[0])


def _combination(
    basis: Sequence[torch.Tensor], factors: Sequence[float], *, like: torch.Tensor
) -> torch.Tensor:
    result = torch.zeros_like(like)
    for one, factor in zip(basis, factors, strict=True):
        result.add_(one, alpha=factor)
    return result


def _residual(operator: SymmetricOperator, vector: torch.Tensor, *, value: float) -> float:
    rest = operator.product(vector).sub_(vector, alpha=value)
    return sqrt(operator.inner([rest], rest)[0])
