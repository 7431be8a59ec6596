"""Replicated and FSDP: buffers, reductions, norms, restores, loss scale; pieces of all."""

from __future__ import annotations

from tests.planted_faults import Fault

_TRAJECTORY = "tests/test_one_trajectory.py::test_every_layout_follows_the_reference"
_REPLICATED = f"{_TRAJECTORY}[replicated, W=2]"
_FSDP = f"{_TRAJECTORY}[FSDP, W=2]"
_FORMAT = "tests/test_contract.py::test_it_takes_and_saves_the_state_of_a_single_process"
_NO_TRACE = "tests/test_contract.py::test_bad_steps_errors_and_evaluation_leave_no_trace"
_GOES_ON = "tests/test_contract.py::test_it_goes_on_from_a_single_process_as_the_reference_does"
_PRECISION = "tests/test_contract.py::test_precision_and_loss_scale_are_what_was_asked_for"
_TRAFFIC = "tests/test_traffic.py"
_BUFFERED = "msam_scale/sharding/buffered.py"
_FSDP_FILE = "msam_scale/sharding/fsdp.py"

FAULTS = (
    # What strategies share.
    Fault(
        name="accumulator-is-not-cleared",
        file=_BUFFERED,
        old="        self._accumulator.flat.zero_()\n",
        new="",
        claim="A step applies its own gradient alone.",
        tests=(f"{_TRAJECTORY}[replicated, W=1]",),
    ),
    Fault(
        name="ascent-gradient-is-not-cleared",
        file=_BUFFERED,
        old="        self.ascent_gradient.flat.zero_()\n",
        new="",
        claim="A micro-batch is perturbed along its own gradient alone.",
        tests=(f"{_TRAJECTORY}[replicated, W=1]",),
    ),
    Fault(
        name="ascent-is-summed-over-all-ranks",
        file=_BUFFERED,
        old="within=plan.group_size)",
        new="within=self._ranks.size)",
        claim="Nothing of an ascent leaves the ranks that share a micro-batch.",
        tests=(_REPLICATED,),
    ),
    Fault(
        name="descent-is-summed-over-a-perturbation-group",
        file=_BUFFERED,
        old="within=request.ranks.size)",
        new="within=request.plan.group_size)",
        claim="Every rank applies the gradient of the whole mini-batch.",
        tests=(_REPLICATED,),
    ),
    Fault(
        name="accumulator-is-summed-after-every-micro-batch",
        file=_BUFFERED,
        old="group=self._descent_group if last else None,",
        new="group=self._descent_group,",
        claim="Gradients are reduced once a step.",
        tests=(_REPLICATED, _TRAFFIC),
    ),
    Fault(
        name="gradients-wait-for-the-end-of-the-backward",
        file="msam_scale/sharding/gradient_reduction.py",
        old="        while len(self._works) < len(self._ranges) and not "
        "self._missing[len(self._works)]:\n            self._launch_next()\n",
        new="",
        claim="Gradients leave while the last backward still runs.",
        tests=(f"{_TRAFFIC}::test_gradients_leave_while_the_backward_runs",),
    ),
    Fault(
        name="sums-on-their-way-arrive-after-an-error",
        file="msam_scale/sharding/gradient_reduction.py",
        old="        if self._buffer is not None:\n            for work in self._works:\n"
        "                work.wait()\n        self._buffer = None\n\n    def _on_gradient",
        new="        pass\n\n    def _on_gradient",
        claim="After an error in a backward the next step is right.",
        tests=("tests/test_step_errors.py",),
    ),
    Fault(
        name="small-gradients-are-scaled-up-by-clipping",
        file="msam_scale/step.py",
        old="(clip_norm / (gradient_norm + 1e-6)).clamp(max=1.0)",
        new="clip_norm / (gradient_norm + 1e-6)",
        claim="Clipping leaves gradients below the norm as they are.",
        tests=(f"{_TRAJECTORY}[replicated, W=1]",),
    ),
    Fault(
        name="a-skipped-step-is-applied",
        file=_BUFFERED,
        old="step_unless(self.optimizer, skip)",
        new="self.optimizer.step()",
        claim="A step with a gradient that is not finite leaves the weights as they are.",
        tests=(f"{_NO_TRACE}[replicated]",),
    ),
    Fault(
        name="frozen-behind-the-engine",
        file="msam_scale/sharding/frozen.py",
        old="        if self._trained_now() != self._trained:\n",
        new="        if len(self._trained_now()) != len(self._trained):\n",
        claim="Parameters that are frozen behind the engine are noticed.",
        tests=("tests/test_initialize.py",),
    ),
    Fault(
        name="loss-scale-is-applied-twice",
        file=_BUFFERED,
        old="loss = self._loss_scale.scaled(loss)",
        new="loss = self._loss_scale.scaled(self._loss_scale.scaled(loss))",
        claim="A loss scale changes nothing but what rounds away.",
        tests=(f"{_GOES_ON}[replicated, float16]",),
    ),
    Fault(
        name="ascent-keeps-the-loss-scale",
        file=_BUFFERED,
        old="            self._loss_scale.unscale(self.ascent_gradient.flat)\n",
        new="            pass\n",
        claim="Ascent norms, and unnormalized ascents, do not depend on the loss scale.",
        tests=(f"{_GOES_ON}[replicated, float16]",),
    ),
    Fault(
        name="loss-scale-falls-without-an-overflow",
        file="msam_scale/sharding/loss_scale.py",
        old="falls = skip & (patience <= 1)",
        new="falls = skip & (patience < 1)",
        claim="The loss scale follows DeepSpeed's rule under every strategy.",
        tests=("tests/test_precision.py",),
    ),
    Fault(
        name="loss-scale-of-a-checkpoint-is-forgotten",
        file=_BUFFERED,
        old="            self._loss_scale.load(counters)",
        new="            pass",
        claim="A resumed run goes on with the loss scale of the run before.",
        tests=(f"{_PRECISION}[replicated, float16]",),
    ),
    Fault(
        name="norms-leave-out-what-fills-no-block",
        file="msam_scale/sharding/norms.py",
        old=" + rest.double().square()",
        new="",
        claim="Norms are over all parameters.",
        tests=("tests/test_sharding_replicated.py",),
    ),
    Fault(
        name="fidelity-is-that-of-a-ranks-shards",
        file="msam_scale/sharding/fidelity.py",
        old="        dist.all_reduce(sums, group=group)\n",
        new="        pass\n",
        claim="The reported fidelity is that of the whole perturbation.",
        tests=("tests/test_precision.py",),
    ),
    Fault(
        name="buffers-of-the-model-are-each-ranks-own",
        file="msam_scale/sharding/placement.py",
        old="            _broadcast(placed, request.ranks.world)\n",
        new="",
        claim="Every rank begins with the parameters and buffers of rank 0.",
        tests=("tests/test_sharding_replicated.py",),
    ),
    Fault(
        name="a-vanilla-run-pays-for-the-ascent",
        file=_BUFFERED,
        old="        if request.ascends:\n            self.hold_ascent_gradient()\n",
        new="        self.hold_ascent_gradient()\n",
        claim="mSAM holds one gradient more than plain training, which holds no more than it did.",
        tests=("tests/test_memory.py",),
    ),
    # Replicated parameters.
    Fault(
        name="weights-come-back-only-without-an-error",
        file="msam_scale/sharding/replicated.py",
        old="        try:\n            self._point_at(views)\n            yield\n"
        "        finally:\n            self._point_at(weights)\n",
        new="        self._point_at(views)\n        yield\n        self._point_at(weights)\n",
        claim="Whatever happens at w + ε, the model has w again.",
        tests=("tests/test_step_errors.py",),
    ),
    Fault(
        name="epsilon-is-subtracted-from-replicated-weights",
        file="msam_scale/sharding/replicated.py",
        old="        torch._foreach_add_(views, weights)\n        try:\n"
        "            self._point_at(views)\n            yield\n"
        "        finally:\n            self._point_at(weights)\n",
        new="        torch._foreach_add_(weights, views)\n        try:\n            yield\n"
        "        finally:\n            torch._foreach_sub_(weights, views)\n",
        claim="The weights are restored bit for bit.",
        tests=("tests/test_exactness.py",),
    ),
    Fault(
        name="narrow-copies-of-the-weights-live-on",
        file="msam_scale/sharding/replicated.py",
        old="        torch.clear_autocast_cache()\n",
        new="        pass\n",
        claim="A caller's own autocast does not hide the perturbation.",
        tests=("tests/test_precision.py",),
    ),
    Fault(
        name="weights-are-copied-before-they-are-perturbed",
        file="msam_scale/sharding/replicated.py",
        old="        weights = self.weights()\n        views =",
        new="        weights = [weight.clone() for weight in self.weights()]\n        views =",
        claim="Perturbing takes no memory beyond the ascent gradient's.",
        tests=("tests/test_memory.py",),
    ),
    # FSDP.
    Fault(
        name="fsdp-norm-is-over-a-ranks-shards",
        file=_FSDP_FILE,
        old="        return self._summed_over_shards(total)\n",
        new="        return total\n",
        claim="The norm of an ascent is over all shards.",
        tests=(_FSDP,),
    ),
    Fault(
        name="fsdp-counts-what-is-whole-on-every-rank",
        file=_FSDP_FILE,
        old="        if self._counts_whole:\n            total = total +",
        new="        if True:\n            total = total +",
        claim="Parameters that every rank holds whole count once in a norm.",
        tests=(_FSDP, f"{_GOES_ON}[FSDP, bfloat16, offloaded]"),
    ),
    Fault(
        name="hybrid-fsdp-counts-what-is-whole-in-one-group",
        file=_FSDP_FILE,
        old="self._counts_whole = request.ranks.rank % request.plan.shard_group_size == 0",
        new="self._counts_whole = request.ranks.rank == 0",
        claim="Every shard group counts its whole parameters once.",
        tests=(f"{_GOES_ON}[hybrid FSDP 2x2]",),
    ),
    Fault(
        name="fsdp-restores-by-subtracting",
        file=_FSDP_FILE,
        old="        torch._foreach_add_(views, weights)\n        _swap(weights, views)\n"
        "        try:\n            yield\n        finally:\n"
        "            self._reshard()  # an error in a forward leaves w + ε gathered\n"
        "            torch._foreach_copy_(weights, views)\n",
        new="        epsilon = [view.clone() for view in views]\n"
        "        torch._foreach_add_(weights, epsilon)\n"
        "        try:\n            yield\n        finally:\n            self._reshard()\n"
        "            torch._foreach_sub_(weights, epsilon)\n",
        claim="The weights are restored bit for bit.",
        tests=(f"{_NO_TRACE}[FSDP]",),
    ),
    Fault(
        name="fsdp-keeps-the-perturbed-weights-gathered",
        file=_FSDP_FILE,
        old="            self._reshard()  # an error in a forward leaves w + ε gathered\n",
        new="",
        claim="An error at w + ε leaves nothing of it behind.",
        tests=(f"{_NO_TRACE}[FSDP]",),
    ),
    Fault(
        name="fsdp-does-not-sum-what-is-whole",
        file=_FSDP_FILE,
        old="            dist.all_reduce(whole, group=self._shard_group)\n",
        new="            pass\n",
        claim="Gradients of parameters that every rank holds whole are summed as others are.",
        tests=(_FSDP,),
    ),
    Fault(
        name="fsdp-averages-over-ranks",
        file=_FSDP_FILE,
        old="        module.set_gradient_divide_factor(1.0)\n",
        new="        module.set_gradient_divide_factor(2.0)\n",
        claim="Gradients are summed over ranks; the self-test stops a backend that does not.",
        tests=("tests/test_self_test.py",),
    ),
    Fault(
        name="fsdp-leaves-unused-parameters-out",
        file=_FSDP_FILE,
        old="        module.set_reduce_scatter_unused_params(True)\n",
        new="",
        claim="Ranks may leave different parameters unused.",
        tests=(_FSDP,),
    ),
    Fault(
        name="fsdp-loads-behind-what-is-gathered",
        file=_FSDP_FILE,
        old='        """Takes this rank\'s shards of saved tensors."""\n        self._reshard()\n',
        new='        """Takes this rank\'s shards of saved tensors."""\n',
        claim="Loaded weights are what forwards compute with, also after an evaluation.",
        tests=(f"{_NO_TRACE}[FSDP]",),
    ),
    # Who saves what.
    Fault(
        name="shares-leave-gaps",
        file="msam_scale/sharding/pieces.py",
        old="stop = min(max(0, -(-(last - position) // size)), piece.values.numel())",
        new="stop = min(max(0, (last - position) // size), piece.values.numel())",
        claim="All ranks together save every element once.",
        tests=(f"{_FORMAT}[replicated]",),
    ),
    Fault(
        name="shards-are-counted-in-rows-of-the-world",
        file="msam_scale/sharding/pieces.py",
        old="    first = min(tensor.device_mesh.get_local_rank() * rows, num_rows)\n",
        new="    first = min(torch.distributed.get_rank() * rows, num_rows)\n",
        claim="Each shard group saves, and takes, its own parts of a tensor.",
        tests=(f"{_FORMAT}[hybrid FSDP 2x2]",),
    ),
    Fault(
        name="replicas-save-everything-twice",
        file="msam_scale/sharding/pieces.py",
        old="        *share_of(sharded, index=replica, count=num_replicas),\n",
        new="        *sharded,\n",
        claim="What several shard groups hold is saved once.",
        tests=(f"{_FORMAT}[hybrid FSDP 2x2]",),
    ),
    Fault(
        name="state-of-channels-last-weights-is-taken-as-it-lies",
        file="msam_scale/sharding/state.py",
        old="        return torch.empty_like(like, dtype=whole.dtype).copy_(whole)\n",
        new="        return whole.clone()\n",
        claim="A resumed run goes on bit for bit, whatever the layout of its weights' memory.",
        tests=(f"{_GOES_ON}[replicated]",),
    ),
    Fault(
        name="state-of-another-models-parameters-is-taken",
        file="msam_scale/sharding/state.py",
        old="    if keys and (missing := set(names) - keys.keys()):\n",
        new="    if not keys and (missing := set(names) - keys.keys()):\n",
        claim="An optimizer's state that lacks a parameter is refused.",
        tests=("tests/checkpoint/test_checkpoint_refused.py",),
    ),
)
