"""ZeRO, stages 1 to 3: DeepSpeed's reductions, its masters and shards, its loss scaler."""

from __future__ import annotations

from tests.planted_faults import Fault

_TRAJECTORY = "tests/test_one_trajectory.py::test_every_layout_follows_the_reference"
_ZERO1 = f"{_TRAJECTORY}[ZeRO-1, W=2]"
_ZERO3 = f"{_TRAJECTORY}[ZeRO-3, W=2]"
_FORMAT = "tests/test_contract.py::test_it_takes_and_saves_the_state_of_a_single_process"
_NO_TRACE = "tests/test_contract.py::test_bad_steps_errors_and_evaluation_leave_no_trace"
_GOES_ON = "tests/test_contract.py::test_it_goes_on_from_a_single_process_as_the_reference_does"
_PRECISION = "tests/test_contract.py::test_precision_and_loss_scale_are_what_was_asked_for"
_ZERO = "tests/test_sharding_zero.py"
_STAGES_1_2 = "msam_scale/sharding/zero/partitioned_optimizer.py"
_STAGE_3 = "msam_scale/sharding/zero/partitioned_parameters.py"
_PRIVATE = "msam_scale/sharding/zero/private_api.py"

FAULTS = (
    # ZeRO-1 and 2.
    Fault(
        name="zero-1-and-2-average-over-ranks",
        file=_STAGES_1_2,
        old="        self._accumulator.flat.mul_(self._ranks.size)\n",
        new="",
        claim="DeepSpeed's average over ranks does not make the gradient smaller.",
        tests=(_ZERO1,),
    ),
    Fault(
        name="zero-1-and-2-give-their-views-away",
        file=_STAGES_1_2,
        old="self._install([view.detach() for view in self._accumulator.views])",
        new="self._install(self._accumulator.views)",
        claim="DeepSpeed's buckets never stand in for the accumulator.",
        tests=(_ZERO1,),
    ),
    Fault(
        name="zero-1-and-2-clip-by-a-pieces-norm",
        file=_STAGES_1_2,
        old="            dist.all_reduce(total, group=self._ranks.world)\n",
        new="            pass\n",
        claim="The gradient's norm is over all ranks' pieces.",
        tests=(_ZERO1,),
    ),
    Fault(
        name="zero-1-and-2-keep-a-skipped-reduction",
        file=_STAGES_1_2,
        old="            private_api.drop_reduced_gradients(self._engine)\n",
        new="            pass\n",
        claim="Nothing of a skipped step is in the next one.",
        tests=(f"{_GOES_ON}[ZeRO-1]", f"{_GOES_ON}[ZeRO-2, offloaded]"),
    ),
    Fault(
        name="zero-1-and-2-ask-the-host",
        file=_STAGES_1_2,
        old="private_api.offloads_optimizer(self._engine) and bool(skip)",
        new="bool(skip)",
        claim="No step of ZeRO-1 and 2 waits for the device where the optimizer can do without.",
        tests=(f"{_ZERO}::test_stages_1_and_2_skip_a_step_without_asking_the_host",),
    ),
    Fault(
        name="deepspeeds-groups-have-torchs-timeout",
        file=_PRIVATE,
        old="dist.new_group(ranks, timeout=timeout)",
        new="dist.new_group(ranks)",
        claim="Collectives of every group give up after the run's own time.",
        tests=(f"{_ZERO}::test_every_group_has_the_timeout_of_the_run",),
    ),
    Fault(
        name="groups-apart-have-torchs-timeout",
        file="msam_scale/ranks.py",
        old='dist.new_group(backend="gloo", timeout=timeout_of_groups())',
        new='dist.new_group(backend="gloo")',
        claim="Collectives of every group give up after the run's own time.",
        tests=(f"{_ZERO}::test_every_group_has_the_timeout_of_the_run",),
    ),
    Fault(
        name="padding-of-offloaded-pieces-keeps-its-nan",
        file=_PRIVATE,
        old="            piece.grad.zero_()  # nothing else",
        new="            pass  # nothing else",
        claim="An offloaded run goes on after a step that was left out.",
        tests=(f"{_NO_TRACE}[ZeRO-2, offloaded]",),
    ),
    Fault(
        name="masters-are-not-loaded",
        file="msam_scale/sharding/zero/group_state.py",
        old="            private_api.refresh_masters(self._engine)\n",
        new="",
        claim="A resumed run goes on with the loaded weights, and not with those before.",
        tests=(f"{_GOES_ON}[ZeRO-1]",),
    ),
    Fault(
        name="state-is-saved-from-the-start-of-a-piece",
        file="msam_scale/sharding/zero/group_state.py",
        old="values = tensor.view(-1)[first - begin : last - begin]",
        new="values = tensor.view(-1)[: last - first]",
        claim="Each element of the optimizer's state is saved where it belongs.",
        tests=(f"{_FORMAT}[ZeRO-1]",),
    ),
    # ZeRO-3.
    Fault(
        name="zero-3-unused-gradients-are-not-cleared",
        file=_PRIVATE,
        old="    gradient_shards(engine).zero_()  # a parameter",
        new="    # a parameter",
        claim="A parameter that goes unused has no gradient of before.",
        tests=(_ZERO3, f"{_TRAJECTORY}[ZeRO-3, W=4]"),
    ),
    Fault(
        name="zero-3-descends-on-top-of-the-ascent",
        file=_STAGE_3,
        old="        if self._ascends:\n            private_api.start_accumulating(self._engine)\n",
        new="",
        claim="The applied gradient is that at w + ε alone.",
        tests=(_ZERO3,),
    ),
    Fault(
        name="zero-3-norm-is-over-a-ranks-shards",
        file=_STAGE_3,
        old="        dist.all_reduce(total, group=self._shard_group)\n",
        new="",
        claim="The norm of an ascent is over all shards.",
        tests=(_ZERO3,),
    ),
    Fault(
        name="zero-3-stays-at-the-perturbed-weights",
        file=_STAGE_3,
        old="        finally:\n            self._set_computing(self._masters)\n",
        new="        finally:\n            pass\n",
        claim="After a micro-batch forwards compute at w again.",
        tests=(_ZERO3,),
    ),
    Fault(
        name="zero-3-persistent-parameters-stay-as-they-were",
        file=_STAGE_3,
        old="            private_api.release_gathered(self._engine)\n"
        "            torch._foreach_copy_",
        new="            torch._foreach_copy_",
        claim="What DeepSpeed keeps gathered is perturbed and restored with the rest.",
        tests=(_ZERO3,),
    ),
    Fault(
        name="zero-3-secondary-shards-are-not-renewed",
        file=_PRIVATE,
        old="    optimizer.invalidate_secondary_tensor()\n",
        new="",
        claim="Secondary shards (hpZ) are those of the weights as they are.",
        tests=(f"{_GOES_ON}[ZeRO-3, hpZ]",),
    ),
    Fault(
        name="zero-3-frozen-secondary-shards-are-not-renewed",
        file=_PRIVATE,
        old="    parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]\n",
        new="",
        claim="Loaded weights that are not trained reach the forwards.",
        tests=("tests/test_sharding_zero.py::test_loaded_weights_reach_secondary_shards",),
    ),
    Fault(
        name="hybrid-zero-3-divides-by-the-world",
        file=_STAGE_3,
        old="        self._num_averaged = size\n",
        new="        self._num_averaged = request.ranks.size\n",
        claim="DeepSpeed's average over a shard group does not make the gradient smaller.",
        tests=(f"{_GOES_ON}[hybrid ZeRO-3 2x2]",),
    ),
    Fault(
        name="hybrid-zero-3-sums-over-shard-groups-only",
        file=_STAGE_3,
        old="            if self._descent_group is not None:\n",
        new="            if self._descent_group is None:\n",
        claim="Every rank applies the gradient of the whole mini-batch.",
        tests=(f"{_GOES_ON}[hybrid ZeRO-3 2x2]",),
    ),
    Fault(
        name="zero-3-gradient-is-divided-by-the-loss-scale-twice",
        file=_STAGE_3,
        old="        self._gradient.mul_(private_api.loss_scale(self._engine))"
        "  # DeepSpeed will divide by it\n",
        new="",
        claim="A loss scale changes nothing but what rounds away.",
        tests=(f"{_GOES_ON}[ZeRO-3, float16, offloaded in sub-groups]",),
    ),
    Fault(
        name="zero-3-offloaded-steps-on-the-gradient-of-before",
        file=_STAGE_3,
        old="            torch._foreach_copy_(offloaded, self.ascent_gradient.views)\n",
        new="            pass\n",
        claim="An offloaded optimizer steps on the gradient of its step.",
        tests=(f"{_GOES_ON}[ZeRO-3, float16, offloaded in sub-groups]",),
    ),
    Fault(
        name="zero-3-hides-an-overflow-from-the-loss-scaler",
        file=_STAGE_3,
        old='                self._gradient.fill_(float("inf"))\n                self._step()\n',
        new="                pass\n",
        claim="The loss scale falls after an overflow.",
        tests=(f"{_PRECISION}[ZeRO-3, float16, offloaded in sub-groups]",),
    ),
    Fault(
        name="zero-3-does-not-load-the-loss-scale",
        file=_STAGE_3,
        old='        scaler.cur_scale = counters["loss_scale"]\n',
        new="",
        claim="A resumed run goes on with the loss scale of the run before.",
        tests=(f"{_PRECISION}[ZeRO-3, float16, offloaded in sub-groups]",),
    ),
    Fault(
        name="zero-3-loads-behind-what-computes",
        file=_STAGE_3,
        old="        self._state.load(self.optimizer, weights, optimizer_state)\n"
        "        self.weights_written()\n",
        new="        self._state.load(self.optimizer, weights, optimizer_state)\n",
        claim="A resumed run computes with the loaded weights.",
        tests=(f"{_NO_TRACE}[ZeRO-3, bfloat16]",),
    ),
)
