"""Samples a second, model FLOPs utilisation and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

# A backward is two matrix products for each of the forward's: with respect to weights and inputs.
_FORWARD_BACKWARD = 3

# Dense peak, floating-point operations a second, of (matrix products in bfloat16, in float32 with
# TF32 off); from NVIDIA's data sheets.
_PEAK_BY_DEVICE = {
    "V100": (125e12, 15.7e12),
    "A100": (312e12, 19.5e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "B200": (2250e12, 75e12),
}
# A product that takes so many seconds is large enough: without instructions for bfloat16, a CPU
# takes seconds for what takes a fraction of one in float32.
_MEASURED_SIZES, _MEASURED_TIMES, _LARGE_ENOUGH = (128, 256, 512, 1024), 5, 0.02


class HasModule(Protocol):
    """The part of an engine that counting operations needs."""

    module: nn.Module


class Throughput:
    """Measures between two readings; what happens while paused does not count.

    Args:
        batch_size: samples of a step over all ranks.
        flops_per_sample: floating-point operations of all passes over one sample.
        peak_flops: peak of all devices together, operations a second.
    """

    def __init__(self, *, batch_size: int, flops_per_sample: float, peak_flops: float) -> None:
        self._batch_size = batch_size
        self._flops_per_sample = flops_per_sample
        self._peak_flops = peak_flops
        self._is_warm = False
        self._num_steps = 0
        self._seconds = 0.0
        self._since: float | None = None

    def pause(self) -> None:
        """Stops the clock, for evaluation and checkpoints."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def resume(self) -> None:
        """Starts the clock again."""
        if self._is_warm:
            self._since = time.perf_counter()

    def count(self) -> None:
        """One step is done. The first of a process is slow, and only starts the clock."""
        if self._is_warm:
            self._num_steps += 1
        else:
            self._is_warm = True
            self.resume()

    def read(self) -> dict[str, float]:
        """The figures since the last reading; none before a step has been timed."""
        self.pause()
        figures: dict[str, float] = {}
        if self._num_steps:
            rate = self._num_steps * self._batch_size / self._seconds
            figures = {
                "samples_per_second": rate,
                "step_milliseconds": self._seconds / self._num_steps * 1e3,
                "mfu": rate * self._flops_per_sample / self._peak_flops,
            }
            self._num_steps, self._seconds = 0, 0.0
        self.resume()
        return figures


def measure_throughput(
    engine: HasModule,
    forward: Callable[[], object],
    *,
    batch_size: int,
    num_passes: int,
    num_devices: int,
    device: torch.device,
    compute: torch.dtype,
) -> Throughput:
    """Counts a model's operations and finds the devices' peak. Collective where forwards are.

    Args:
        engine: of the model.
        forward: the model's forward of one sample.
        batch_size: samples of a step over all ranks.
        num_passes: forward-backward passes over each sample: 2 with an ascent.
        num_devices: ranks.
        device: one of theirs.
        compute: type of the matrix products.
    """
    return Throughput(
        batch_size=batch_size,
        flops_per_sample=num_passes * flops_of_sample(engine, forward),
        peak_flops=num_devices * peak_flops(device, compute),
    )


def flops_of_sample(engine: HasModule, forward: Callable[[], object]) -> float:
    """Operations of a forward and backward of one sample, counted from the operators that run."""
    was_training = engine.module.training
    engine.module.eval()
    with torch.no_grad(), _uncompiled(), _FlopCounter() as counter:
        forward()
    engine.module.train(was_training)
    return float(counter.num_flops * _FORWARD_BACKWARD)


class _FlopCounter(TorchDispatchMode):
    """Torch's `FlopCounterMode` for one sum, without the import of the compiler."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # imports Triton

        self.num_flops, self._formulas = 0, flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's way to leave out a decorator that imports the compiler to keep it away."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operator and counts what its formula says."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self._formulas.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            self.num_flops += formula(*args, **kwargs, out_val=out)
        return out


def _uncompiled() -> AbstractContextManager[Any]:
    """Inside, what is compiled runs as it is written; what is not loaded has compiled nothing."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak operations a second of one device: the data sheet's, or else the best of products.

    The products are of square matrices, larger ones as long as they take no time to speak of.
    """
    if device.type == "cuda":
        known = peak_of_data_sheet(torch.cuda.get_device_name(device), dtype)
        if known is not None:
            return known
    best = 0.0
    for size in _MEASURED_SIZES:
        matrix = torch.ones(size, size, device=device, dtype=dtype)
        seconds = min(_seconds_of_product(matrix) for _ in range(_MEASURED_TIMES))
        best = max(best, 2 * size**3 / seconds)
        if seconds >= _LARGE_ENOUGH:
            break
    return best


def peak_of_data_sheet(name: str, dtype: torch.dtype) -> float | None:
    """Peak operations a second of a device by its name: equal in both types of 16 bits."""
    for key, (in_16_bits, in_float32) in _PEAK_BY_DEVICE.items():
        if all(part in name for part in key.split()):
            return in_16_bits if dtype.itemsize == 2 else in_float32
    return None


def _seconds_of_product(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    float((matrix @ matrix)[0, 0])  # reading a value waits for the device
    return time.perf_counter() - start


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far: allocated on an accelerator, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
