"""The only file that touches what DeepSpeed 0.19.8 does not document.

`check_deepspeed` makes sure of the version, and the self-test of every strategy of the behaviour.
"""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

SUPPORTED_VERSION = "0.19.8"


@cache
def check_deepspeed() -> None:
    """Stops where another DeepSpeed is installed than the one this file was written for.

    Raises:
        RuntimeError: with the version at hand and the supported one.
    """
    import deepspeed

    if deepspeed.__version__.partition("+")[0] != SUPPORTED_VERSION:
        raise RuntimeError(
            f"deepspeed {deepspeed.__version__} is installed; sharding.strategy zero1, zero2 and "
            f"zero3 rely on internals of deepspeed {SUPPORTED_VERSION}: install that one"
        )


def prepare_process() -> None:
    """What DeepSpeed needs of a process, and what it is to leave alone.

    It reads its device's number from LOCAL_RANK, in every forward; launchers set it. On a CPU its
    `init_distributed` would build a collective with a C++ compiler, under a lock that a killed
    build leaves behind; gloo does without it. There it would also start `numactl` at each reduction
    of stage 3, to count what takes the place of GPUs. It calls names that torch has deprecated, at
    which a user can do nothing.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    os.environ.setdefault("LOCAL_RANK", str(index))
    if get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        get_accelerator().device_count = _ranks_of_this_machine
    warnings.filterwarnings(
        "ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning
    )


def _ranks_of_this_machine() -> int:
    """As the launcher says it: `deepspeed`'s name of the variable, then torchrun's."""
    number = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or ""
    return int(number) if number.isdigit() else dist.get_world_size()


# Stages 1 and 2.


def flat_weights(engine: Any) -> list[torch.Tensor]:
    """For each parameter group all weights of the model, padded; parameters are views of them."""
    return list(engine.optimizer.bit16_groups_flat)


def grouped_parameters(engine: Any) -> list[list[nn.Parameter]]:
    """The parameters of each group."""
    return [list(group) for group in engine.optimizer.bit16_groups]


def master_partitions(engine: Any) -> list[torch.Tensor]:
    """This rank's piece of each group: what the optimizer steps."""
    return [piece.detach() for piece in engine.optimizer.single_partition_of_fp32_groups]


def reduced_gradients(engine: Any) -> list[torch.Tensor]:
    """This rank's pieces of the averaged gradient, after a reduction."""
    optimizer = engine.optimizer
    if optimizer.cpu_offload:
        return [partition.grad for partition in optimizer.single_partition_of_fp32_groups]
    return [piece for pieces in optimizer.averaged_gradients.values() for piece in pieces]


def offloads_optimizer(engine: Any) -> bool:
    """Whether the optimizer steps in host memory."""
    return bool(engine.optimizer.cpu_offload)


def hold_back_reduction(engine: Any) -> None:
    """Makes DeepSpeed's hooks on parameters leave gradients where a backward puts them.

    It is what `DeepSpeedEngine.coalesce_grad_reduction` does inside, without its reduction at the
    end of a block that an error has left.
    """
    engine.optimizer._coalesce_grad_reduction = True


def reduce_gradients(engine: Any) -> None:
    """Averages the `parameter.grad` of all parameters, once, and keeps this rank's pieces."""
    engine.optimizer._coalesce_grad_reduction = False
    with engine.coalesce_grad_reduction():
        pass
    hold_back_reduction(engine)


def refresh_masters(engine: Any) -> None:
    """The optimizer's pieces of the weights become those of the parameters."""
    engine.optimizer.refresh_fp32_params()


def drop_reduced_gradients(engine: Any) -> None:
    """Forgets a reduction instead of stepping on it, as DeepSpeed does after an overflow."""
    optimizer = engine.optimizer
    optimizer.zero_grad(set_to_none=True)
    optimizer.micro_step_id = -1
    if optimizer.cpu_offload:
        optimizer.reset_cpu_buffers()
        for piece in optimizer.single_partition_of_fp32_groups:
            piece.grad.zero_()  # nothing else writes the padding, where a NaN would stay
        return
    for group in list(optimizer.averaged_gradients):
        optimizer.averaged_gradients[group] = None
        optimizer.all_grad_tensors[group] = None


# Stage 3.


def gradient_shards(engine: Any) -> torch.Tensor:
    """One flat tensor: this rank's shards of all gradients, in the order of `master_shards`."""
    buffer: torch.Tensor = engine.optimizer.grad_partitions_flat_buffer
    return buffer


def master_shards(engine: Any) -> list[torch.Tensor]:
    """For each sub-group of parameters this rank's shards of them in float32, one after another."""
    return [shard.detach() for shard in engine.optimizer.fp32_partitioned_groups_flat]


def computing_shards(engine: Any) -> list[torch.Tensor]:
    """The same in the type that computes: what a forward gathers."""
    return [shard.detach() for shard in engine.optimizer.fp16_partitioned_groups_flat]


def sub_groups(engine: Any) -> list[list[nn.Parameter]]:
    """The parameters behind each entry of `master_shards`."""
    return [list(group) for group in engine.optimizer.fp16_groups]


def shard_module(
    module: nn.Module, *, group: dist.ProcessGroup, settings: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Shards the parameters of a module that are whole so far; values are the first rank's.

    `zero.Init` cannot broadcast a tensor without dimensions, but gathers any shape.
    """
    import deepspeed
    from deepspeed.utils import groups

    scalars = [p for p in module.parameters() if p.dim() == 0 and not is_sharded(p)]
    for parameter in scalars:
        parameter.data = parameter.data.view(1)
    with only_errors_logged():
        deepspeed.zero.Init(
            module=module,
            data_parallel_group=group,
            config_dict_or_path=settings,
            dtype=dtype,
            # Of secondary shards (hpZ): made by the first call, and by no other.
            zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
        )
    for parameter in scalars:
        parameter.ds_shape = torch.Size()  # type: ignore[attr-defined]


_num_sharded = 0


def restore_linear_after(owner: object) -> None:
    """Gives torch its `linear` back when nobody holds the last sharded `owner` any more.

    `zero.Init` replaces `torch.nn.functional.linear` in the whole process, for good, by one whose
    backward has no derivative of its own.
    """
    global _num_sharded
    _num_sharded += 1
    weakref.finalize(owner, _restore_linear).atexit = False


def _restore_linear() -> None:
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    global _num_sharded
    _num_sharded -= 1
    original = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if not _num_sharded and original is not None:
        nn.functional.linear = original


def forget_groups_of_before() -> None:
    """DeepSpeed keeps its groups where the process has left the world they belong to."""
    from deepspeed.utils import groups

    if groups._WORLD_GROUP is None:
        return
    try:
        dist.get_rank(groups._WORLD_GROUP)
    except ValueError:  # no group of the present world
        groups._release_process_group_references()


def make_groups_with(timeout: timedelta | None) -> None:
    """Gives the groups that DeepSpeed makes this timeout; None: torch's own, as it would itself."""
    from deepspeed.comm import comm

    comm.cdb.new_group = lambda ranks: dist.new_group(ranks, timeout=timeout)


def forget_secondary_groups() -> None:
    """An earlier engine leaves its hpZ groups behind, which would turn hpZ on for the next one."""
    from deepspeed.utils import groups

    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether `zero.Init` has taken the parameter."""
    return hasattr(parameter, "ds_id")


def shard_numel(parameter: nn.Parameter) -> int:
    """Elements of a rank's shard of a parameter, padding included."""
    return int(parameter.partition_numel())  # type: ignore[attr-defined]


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of a sharded parameter."""
    shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
    return shape


def set_own_shard(parameter: nn.Parameter, values: torch.Tensor) -> None:
    """Writes this rank's shard of a parameter that is not trained, flat; forwards gather it.

    DeepSpeed drops the secondary shards (hpZ) of trained parameters after a step, and never these.
    """
    parameter.ds_tensor.copy_(values)  # type: ignore[attr-defined]
    parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]


def release_gathered(engine: Any) -> None:
    """Before shards change: parameters that are whole are cut up, so that none stays as it was."""
    engine.optimizer._partition_all_parameters()


def refresh_gathered(engine: Any) -> None:
    """After shards changed: what DeepSpeed keeps gathered is gathered anew."""
    optimizer = engine.optimizer
    if torch.cuda.is_available():  # it gathers on a stream that does not wait for ours
        torch.cuda.current_stream().synchronize()
    optimizer.invalidate_secondary_tensor()
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def start_accumulating(engine: Any) -> None:
    """The next backward writes gradient shards, later ones add to them."""
    gradient_shards(engine).zero_()  # a parameter that goes unused is not written at all
    engine.optimizer.zero_grad()


def finish_backward(engine: Any) -> None:
    """What `DeepSpeedEngine.forward` would do before the next forward."""
    engine.optimizer.clear_backward_seen_flag()


def offloaded_gradients(engine: Any) -> list[torch.Tensor] | None:
    """Where the optimizer takes its gradients from, if it steps on the host."""
    optimizer = engine.optimizer
    if not optimizer.offload_optimizer:
        return None
    return [shard.grad for shard in optimizer.fp32_partitioned_groups_flat]


def loss_scale(engine: Any) -> float:
    """The factor that `engine.backward` multiplies a loss by."""
    return float(engine.optimizer.loss_scale)


def loss_scaler(engine: Any) -> Any:
    """DeepSpeed's dynamic loss scaler."""
    return engine.optimizer.loss_scaler


def skip_at_the_lowest_scale(engine: Any) -> None:
    """Has an overflow at the lowest loss scale skip a step as any other does.

    How many may be skipped in a row is the engine's setting; DeepSpeed would end the run at once.
    """
    scaler = loss_scaler(engine)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False


# All stages.


def destroy_with(owner: object, engine: Any) -> None:
    """Has DeepSpeed's engine let go of its memory when nobody holds `owner` any more.

    Its hooks on autograd's nodes refer to the engine where Python's garbage collector cannot see
    it, so that an engine nobody uses would keep its gradient buckets, 2 GB by default, for ever.
    The owner must be out of reach from the model.
    """
    weakref.finalize(owner, engine.destroy).atexit = False


@contextmanager
def without_broadcast() -> Iterator[None]:
    """Ranks have equal weights already, and DeepSpeed's broadcast refuses 0-dimensional ones."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    original = DeepSpeedEngine._broadcast_model
    DeepSpeedEngine._broadcast_model = lambda engine: None
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = original


@contextmanager
def only_errors_logged() -> Iterator[None]:
    """DeepSpeed's start says much on every rank, unless the user has asked for a level."""
    from deepspeed.utils import logger

    level = logger.level
    if not {"DEEPSPEED_LOG_LEVEL", "DS_LOG_LEVEL"} & os.environ.keys():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def stepped_tensors(engine: Any) -> list[torch.Tensor]:
    """The flat tensors that the base optimizer steps, as the keys of its state."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer inside DeepSpeed's, whose parameters are this rank's flat pieces."""
    optimizer: torch.optim.Optimizer = engine.optimizer.optimizer
    return optimizer


def number_for(optimizer: torch.optim.Optimizer, whole: torch.Tensor) -> torch.Tensor | int:
    """A number such as Adam's step as an optimizer keeps it: DeepSpeed's own have Python's ints."""
    is_deepspeeds = type(optimizer).__module__.partition(".")[0] == "deepspeed"
    return int(whole) if is_deepspeeds else whole.clone()
