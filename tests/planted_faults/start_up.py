"""Faults in what a process imports and starts."""

from __future__ import annotations

from tests.planted_faults import Fault

_IMPORTS = ("tests/test_start_up.py::test_nothing_is_imported_before_it_is_used",)

FAULTS = (
    Fault(
        name="fsdp-imported-by-every-run",
        file="msam_scale/sharding/__init__.py",
        old="from msam_scale.sharding.interface import Sharding, ShardingRequest\n",
        new="from msam_scale.sharding import fsdp\n"
        "from msam_scale.sharding.interface import Sharding, ShardingRequest\n",
        claim="a run that does not shard with FSDP starts without it",
        tests=_IMPORTS,
    ),
    Fault(
        name="optimizer-imports-the-compiler",
        file="msam_scale/optimization/from_config.py",
        old="        if not STAGE_OF.get(config.sharding.strategy):",
        new="        if STAGE_OF.get(config.sharding.strategy):",
        claim="a run that compiles nothing starts without torch's compiler",
        tests=_IMPORTS,
    ),
    Fault(
        name="optimizer-loads-its-state-with-the-compiler",
        file="msam_scale/optimization/eager.py",
        old='_HIDDEN = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")',
        new='_HIDDEN = ("add_param_group", "state_dict", "zero_grad")',
        claim="a run that goes on starts without torch's compiler",
        tests=_IMPORTS,
    ),
    Fault(
        name="optimizer-steps-with-gradients-on",
        file="msam_scale/optimization/eager.py",
        old='        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):',
        new="        with torch.enable_grad():",
        claim="the engine's optimizers do what torch's classes do",
        tests=("tests/test_start_up.py",),
    ),
    Fault(
        name="numactl-at-each-reduction",
        file="msam_scale/sharding/zero/private_api.py",
        old="        get_accelerator().device_count = _ranks_of_this_machine\n",
        new="",
        claim="a step of ZeRO-3 starts no process",
        tests=("tests/test_start_up_on_ranks.py",),
    ),
    Fault(
        name="masks-compiled-anew-for-each-pass",
        file="msam_scale/engine.py",
        old="        keep_out_of_compiled_code()\n",
        new="",
        claim="compiled blocks keep their masks outside and are compiled once",
        tests=("tests/test_start_up.py::test_masks_stay_out_of_what_is_compiled_later",),
    ),
)
