"""`msam-scale sharpness`: how flat the minimum is that a run has found."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.arguments import add_run_arguments, count

if TYPE_CHECKING:
    from msam_scale.flatness.run import RunFlatness

NAME = "sharpness"
HELP = "measure the flatness of a run: largest Hessian eigenvalues, trace, sharpness"

_MAX_ITERATIONS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the run and what is measured."""
    add_run_arguments(parser)
    parser.add_argument(
        "--eigenvalues",
        type=count,
        default=1,
        metavar="K",
        help="how many of the largest eigenvalues of the Hessian; 1 by default, which is λ_max",
    )
    parser.add_argument(
        "--samples",
        type=count,
        metavar="N",
        help="use N random training samples; all of them by default",
    )
    parser.add_argument("--trace", action="store_true", help="estimate the trace, too")
    parser.add_argument(
        "--probes",
        type=_probes,
        default=32,
        metavar="N",
        help="random vectors of the trace, each one Hessian-vector product; 32 by default",
    )
    parser.add_argument(
        "--iterations",
        type=count,
        default=_MAX_ITERATIONS,
        metavar="N",
        help="most Hessian-vector products for the eigenvalues, each kept as a vector the size of "
        f"the model; {_MAX_ITERATIONS} by default",
    )
    parser.add_argument(
        "--rho", type=_positive, metavar="R", help="distance of the sharpness; the run's by default"
    )
    parser.add_argument(
        "--micro-batches",
        type=count,
        metavar="M",
        help="the paper's m, for the m-sharpness; the run's by default",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; returns 0."""
    from data_pipelines.errors import UserError
    from msam_scale.flatness.run import Request, measure_run

    if arguments.eigenvalues > arguments.iterations:
        raise UserError(
            f"--eigenvalues {arguments.eigenvalues} takes at least as many --iterations, "
            f"which are {arguments.iterations}"
        )
    found = measure_run(
        Path(arguments.folder),
        Request(
            num_eigenvalues=arguments.eigenvalues,
            num_samples=arguments.samples,
            num_probes=arguments.probes if arguments.trace else None,
            max_iterations=arguments.iterations,
            rho=arguments.rho,
            micro_batches=arguments.micro_batches,
        ),
        allow_code=arguments.allow_code,
    )
    if arguments.json:
        print(json.dumps({"run": arguments.folder, **_figures(found)}))
    else:
        print(_table(arguments.folder, found))
    return 0


def _figures(found: RunFlatness) -> dict[str, Any]:
    pairs, trace = found.eigenpairs, found.trace
    return {
        "step": found.step,
        "samples": found.num_samples,
        "parameters": found.num_parameters,
        "loss": found.loss,
        "lambda_max": pairs.values[0],
        "eigenvalues": pairs.values,
        "residuals": pairs.residuals,
        "converged": pairs.converged,
        "hessian_vector_products": pairs.num_products,
        "trace": None if trace is None else trace.mean,
        "trace_standard_error": None if trace is None else trace.standard_error,
        "trace_probes": None if trace is None else trace.num_probes,
        "rho": found.rho,
        "rho_sharpness": found.rho_sharpness,
        "m_sharpness": found.m_sharpness,
        "micro_batch_size": found.micro_batch_size,
        "micro_batches": found.num_micro_batches,
    }


def _table(folder: str, found: RunFlatness) -> str:
    pairs, trace = found.eigenpairs, found.trace
    lines = [
        f"{folder} after step {found.step}: training loss {found.loss:.6g} "
        f"over {found.num_samples} samples, {found.num_parameters} parameters"
    ]
    state = "converged" if pairs.converged else "NOT CONVERGED, try more --iterations"
    notes = {0: f"; {state} after {pairs.num_products} Hessian-vector products"}
    for number, (value, residual) in enumerate(zip(pairs.values, pairs.residuals, strict=True)):
        name = f"λ_{number + 1}" if number else "λ_max"
        note = f"relative residual {residual:.1e}{notes.get(number, '')}"
        lines.append(f"{name:<12} {value:<12.6g} {note}")
    if trace is not None:
        lines.append(
            f"{'trace':<12} {trace.mean:<12.6g} "
            f"standard error {trace.standard_error:.2g}, {trace.num_probes} probes"
        )
    lines.append(f"{'ρ-sharpness':<12} {found.rho_sharpness:<12.6g} ρ = {found.rho:g}")
    lines.append(
        f"{'m-sharpness':<12} {found.m_sharpness:<12.6g} ρ = {found.rho:g}, "
        f"{found.num_micro_batches} micro-batches of {found.micro_batch_size} samples"
    )
    return "\n".join(lines)


def _probes(text: str) -> int:
    value = int(text)
    if value < 2:  # one has no spread
        raise ValueError(text)
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value
