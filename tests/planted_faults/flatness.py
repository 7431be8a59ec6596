"""Faults in curvature, sharpness, the theory of stability, landscapes and the paper's tables."""

from __future__ import annotations

from tests.planted_faults import Fault

_FLATNESS = "msam_scale/flatness"
_REPRODUCTION = "msam_scale/reproduction"
_CURVATURE = "tests/flatness/test_curvature.py"
_STABILITY = "tests/flatness/test_stability.py"
_ALONE = "tests/flatness/test_sharpness_alone.py"
_LAYOUT = "tests/flatness/test_engine_sharpness.py"
_ON_FSDP = (f"{_LAYOUT}::test_it_is_exact_in_every_layout_and_leaves_the_run_alone[FSDP-msam]",)
_EXPERIMENTS = "tests/reproduction/test_experiments.py"
_REPRODUCING = "tests/reproduction/test_reproducing.py"

FAULTS = (
    Fault(
        name="lanczos-loses-orthogonality",
        file=f"{_FLATNESS}/lanczos.py",
        old="            for one, part in zip(self.basis, parts, strict=True):\n",
        new="            for one, part in zip(self.basis[-2:], parts[-2:], strict=True):\n",
        claim="No eigenvalue comes twice, however long Lanczos goes on.",
        tests=(_CURVATURE,),
    ),
    Fault(
        name="lanczos-stops-at-the-first-pair",
        file=f"{_FLATNESS}/lanczos.py",
        old="(residuals <= tolerance * space.scale).all()",
        new="(residuals <= tolerance * space.scale).any()",
        claim="All eigenvalues that were asked for have converged when it says so.",
        tests=(_CURVATURE,),
    ),
    Fault(
        name="trace-of-one-probe-again-and-again",
        file=f"{_FLATNESS}/trace.py",
        old="operator.random_signs(seed + number)",
        new="operator.random_signs(seed)",
        claim="The trace's estimate is a mean over independent probes.",
        tests=(_CURVATURE,),
    ),
    Fault(
        name="trace-says-its-spread-for-its-error",
        file=f"{_FLATNESS}/trace.py",
        old="float(found.std()) / num_probes**0.5",
        new="float(found.std())",
        claim="The standard error is that of the mean.",
        tests=(_CURVATURE,),
    ),
    Fault(
        name="products-count-batches-not-samples",
        file="msam_scale/flatness/hessian_vector.py",
        old="                yield term.mean, weight\n",
        new="                yield term.mean, 1.0\n",
        claim="Every sample has the same weight, whatever the batches' sizes.",
        tests=(_CURVATURE,),
    ),
    Fault(
        name="products-in-training-mode",
        file=f"{_FLATNESS}/hessian_vector.py",
        old="        with evaluating(self._model), sdpa_kernel(SDPBackend.MATH):\n",
        new="        with sdpa_kernel(SDPBackend.MATH):\n",
        claim="Flatness is that of the model as it predicts, without dropout.",
        tests=(_CURVATURE,),
    ),
    Fault(
        name="frozen-layers-thaw-after-measuring",
        file="msam_scale/layers/modes.py",
        old="            module.training = mode\n",
        new="            module.train()\n",
        claim="After a measurement every module is in the mode it was in.",
        tests=(
            f"{_LAYOUT}::test_it_is_exact_in_every_layout_and_leaves_the_run_alone"
            "[replicated-msam]",
        ),
    ),
    Fault(
        name="displaced-weights-come-back-rounded",
        file=f"{_FLATNESS}/gradient_difference.py",
        old="            torch._foreach_copy_(list(weights), kept)\n",
        new="            torch._foreach_sub_(list(weights), self._views_of(displacement))\n",
        claim="A measurement leaves the weights as they were, bit for bit.",
        tests=_ON_FSDP,
    ),
    Fault(
        name="difference-over-one-step-only",
        file=f"{_FLATNESS}/gradient_difference.py",
        old="return ahead.sub_(behind).mul_(norm / (2 * step))",
        new="return ahead.sub_(behind).mul_(norm / step)",
        claim="Products by differences have the right length.",
        tests=_ON_FSDP,
    ),
    Fault(
        name="differences-count-batches-not-samples",
        file="msam_scale/flatness/gradient_difference.py",
        old="                share = term.multiplicity * is_counted / self._num_samples\n",
        new="                share = is_counted / self._most\n",
        claim="Every sample has the same weight, whatever the ranks' batches.",
        tests=_ON_FSDP,
    ),
    Fault(
        name="whole-parameters-counted-on-every-rank",
        file=f"{_FLATNESS}/gradient_difference.py",
        old="if self._place == 0 or not any(self._whole):",
        new="if self._place >= 0 or not any(self._whole):",
        claim="What every rank holds whole counts once in sums over shards.",
        tests=_ON_FSDP,
    ),
    Fault(
        name="groups-keep-their-gradients",
        file=f"{_FLATNESS}/gradient_difference.py",
        old="        if self._across is not None:\n",
        new="        if self._across is None:\n",
        claim="The gradient is the mean over the samples of all groups of ranks.",
        tests=(
            f"{_LAYOUT}::test_it_is_exact_in_every_layout_and_leaves_the_run_alone"
            "[replicated-msam]",
        ),
    ),
    Fault(
        name="step-far-too-large-for-the-weights",
        file=f"{_FLATNESS}/gradient_difference.py",
        old="base = float(torch.finfo(weights.dtype).eps ** (1 / 3)) * size",
        new="base = float(torch.finfo(torch.bfloat16).eps ** (1 / 3)) * size",
        claim="The step of a difference fits the type of the weights.",
        tests=_ON_FSDP,
    ),
    Fault(
        name="measured-by-the-next-phases-plan",
        file=f"{_FLATNESS}/engine_sharpness.py",
        old="            plan=self._followed,",
        new="            plan=self.plan,",
        claim="Sharpness may be measured where a phase of the training ends.",
        tests=(
            f"{_LAYOUT}::test_it_is_exact_in_every_layout_and_leaves_the_run_alone"
            "[hybrid FSDP 2x2-phases]",
        ),
    ),
    Fault(
        name="measuring-moves-the-runs-generator",
        file=f"{_FLATNESS}/engine_sharpness.py",
        old='    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):\n',
        new="    if device is not None:\n",
        claim="The run goes on as without a measurement, whatever its loader draws.",
        tests=(
            f"{_LAYOUT}::test_it_is_exact_in_every_layout_and_leaves_the_run_alone"
            "[replicated-msam]",
        ),
    ),
    Fault(
        name="m-sharpness-of-unequal-micro-batches",
        file=f"{_FLATNESS}/measures.py",
        old="parts = (batch for index, batch in enumerate(batches) if index < count)",
        new="parts = (batch for index, batch in enumerate(batches) if index <= count)",
        claim="The m-sharpness is over micro-batches of one size.",
        tests=_ON_FSDP,
    ),
    Fault(
        name="kinks-not-said",
        file=f"{_FLATNESS}/engine_sharpness.py",
        old="_MOST_ERROR = 0.1\n",
        new="_MOST_ERROR = 1.0\n",
        claim="Differences that are of no use, as for ReLUs, are said.",
        tests=(_ALONE,),
    ),
    Fault(
        name="rho-sharpness-downhill",
        file=f"{_FLATNESS}/sharpness.py",
        old="surface.displaced(gradient.mul_(rho / norm))",
        new="surface.displaced(gradient.mul_(-rho / norm))",
        claim="ρ-sharpness is the rise of the loss along the gradient.",
        tests=(_CURVATURE,),
    ),
    Fault(
        name="alpha-as-printed",
        file=f"{_FLATNESS}/stability.py",
        old="return max(learning_rate / 2, learning_rate**2 / self.beta)",
        new="return max(learning_rate / 2, learning_rate**2 * self.beta)",
        claim="α makes (14) and (12) one condition.",
        tests=(_STABILITY,),
    ),
    Fault(
        name="variance-as-if-drawn-with-replacement",
        file=f"{_FLATNESS}/sampling.py",
        old="Fraction(self.num_examples - num_samples, num_samples * (self.num_examples - 1))",
        new="Fraction(1, num_samples)",
        claim="Mini-batches without replacement vary less.",
        tests=(_STABILITY,),
    ),
    Fault(
        name="omega-without-rho",
        file=f"{_FLATNESS}/stability.py",
        old="omega=rho * within *",
        new="omega=within *",
        claim="Ω is ρ times the variance of a micro-batch within its mini-batch.",
        tests=(_STABILITY,),
    ),
    Fault(
        name="edge-of-sam-for-msam",
        file=f"{_FLATNESS}/stability.py",
        old="alpha * (1 + rho * micro_batch_factor / beta)",
        new="alpha * (1 + rho / beta)",
        claim="mSAM's edge of stability lies below SAM's (Theorem 3.2).",
        tests=(_STABILITY,),
    ),
    Fault(
        name="direction-normalized-by-layer",
        file=f"{_FLATNESS}/landscape.py",
        old="drawn *= (lengths / torch.linalg.vector_norm(drawn, dim=1))[:, None]",
        new="drawn *= lengths.norm() / drawn.norm()",
        claim="Each filter of a landscape's direction is as long as the filter it moves.",
        tests=("tests/flatness/test_landscape_grid.py",),
    ),
    Fault(
        name="landscape-moves-biases",
        file=f"{_FLATNESS}/landscape.py",
        old="        if weights.dim() < 2:\n",
        new="        if weights.dim() < 1:\n",
        claim="Biases and normalizations do not move in a landscape.",
        tests=("tests/flatness/test_landscape_grid.py",),
    ),
    Fault(
        name="table-shows-the-population-deviation",
        file=f"{_REPRODUCTION}/results.py",
        old="std=stdev(values) if len(values) > 1 else None",
        new="std=stdev(values) * (1 - 1 / len(values)) ** 0.5 if len(values) > 1 else None",
        claim="Tables show the sample standard deviation.",
        tests=(_EXPERIMENTS,),
    ),
    Fault(
        name="table-takes-the-best-evaluation",
        file=f"{_REPRODUCTION}/measures.py",
        old="return 100 * float(lines[-1][metric])",
        new="return 100 * max(float(line[metric]) for line in lines)",
        claim="The metric of a run is that after its last step.",
        tests=(_EXPERIMENTS,),
    ),
    Fault(
        name="warm-up-is-timed",
        file=f"{_REPRODUCTION}/measures.py",
        old="return float(median(times[1:]))",
        new="return float(median(times))",
        claim="The first report of a timed run is left out.",
        tests=(_EXPERIMENTS,),
    ),
    Fault(
        name="papers-times-not-divided",
        file=f"{_REPRODUCTION}/results.py",
        old='"mean": one.mean / unit, "std": None',
        new='"mean": one.mean, "std": None',
        claim="The paper's times stand beside ours as multiples of vanilla's.",
        tests=(_REPRODUCING,),
    ),
    Fault(
        name="times-of-other-machines-divided",
        file=f"{_REPRODUCTION}/reproduce.py",
        old="    return [cell for cell in plan.cells if (cell.row, cell.seed) in mine]\n",
        new="    return list(plan.cells[index::count]) if mine else []\n",
        claim="One machine does all columns of a row and seed.",
        tests=(_EXPERIMENTS,),
    ),
    Fault(
        name="run-without-its-last-evaluation-is-finished",
        file=f"{_REPRODUCTION}/state.py",
        old="is_finished=saved == num_steps and num_steps in reported",
        new="is_finished=saved == num_steps",
        claim="A run that was killed before its last evaluation goes on.",
        tests=(_REPRODUCING,),
    ),
    Fault(
        name="measurement-of-an-earlier-run-kept",
        file=f"{_REPRODUCTION}/running.py",
        old="if words is None or (path.is_file() and not is_new):",
        new="if words is None or path.is_file():",
        claim="A run that went on is measured anew.",
        tests=(_REPRODUCING,),
    ),
    Fault(
        name="interrupt-leaves-runs-alone",
        file=f"{_REPRODUCTION}/running.py",
        old="            running = list(self._processes)\n",
        new="            running = list(self._processes - self._processes)\n",
        claim="An interrupt ends the runs that were started.",
        tests=(_REPRODUCING,),
    ),
    Fault(
        name="unconverged-eigenvalue-in-the-table",
        file=f"{_REPRODUCTION}/measures.py",
        old='        if not found["converged"]:\n',
        new='        if "converged" not in found:\n',
        claim="What has not converged is not taken for an eigenvalue.",
        tests=(_REPRODUCING,),
    ),
    Fault(
        name="experiments-decide-less-than-they-say",
        file=f"{_REPRODUCTION}/cells.py",
        old="if key.startswith(_OWN_KEYS) or key in decided:",
        new="if key.startswith(_OWN_KEYS):",
        claim="What rows and columns decide cannot be set for all runs.",
        tests=(_EXPERIMENTS,),
    ),
)
