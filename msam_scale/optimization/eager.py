"""torch's optimizers for programs that compile none of their steps.

torch imports its compiler, and with it FSDP, DTensors, sympy and Triton, whenever an optimizer is
made, steps or loads a state, only to tell the compiler to leave these methods alone. It takes as
long as `import torch`.
"""

from __future__ import annotations

import copyreg
import inspect
from functools import cache
from typing import Any

import torch

# What `torch.optim.Optimizer` hides from the compiler.
_HIDDEN = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@cache
def without_compiler(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """A class that does what `cls` does and leaves the compiler out; `cls` if it is not torch's.

    The methods are torch's, without their decorators. A copy of an optimizer is a `cls`.
    """
    if not cls.__module__.startswith("torch.optim."):
        return cls
    step = inspect.unwrap(cls.step)

    def step_without_compiler(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return step(self, closure)

    def reduce(self: torch.optim.Optimizer, _protocol: object) -> tuple[Any, ...]:
        return copyreg.__newobj__, (cls,), self.__getstate__()  # type: ignore[attr-defined]

    methods = {name: inspect.unwrap(getattr(cls, name)) for name in _HIDDEN}
    return type(
        cls.__name__,
        (cls,),
        {
            **methods,
            "step": step_without_compiler,
            "__reduce_ex__": reduce,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
        },
    )
