"""How the values of a deferred tensor come about, and following that once they are needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True)
class Operation:
    """One call of an operator.

    Attributes:
        func: the operator.
        args: its arguments, deferred tensors as `Reference`s.
        kwargs: likewise.
        generator_state: of the CPU's generator before it, where it draws; else None.
    """

    func: Any
    args: Any
    kwargs: Any
    generator_state: torch.Tensor | None


@dataclass
class Recipe:
    """What made a piece of memory and was then done to it, in order.

    Attributes:
        operations: the first one makes the memory, the others write to it.
        output: which tensor of the first operation's result it is.
    """

    operations: list[Operation] = field(default_factory=list)
    output: int = 0


@dataclass(frozen=True)
class Reference:
    """A deferred tensor as it was at one moment.

    Attributes:
        recipe: of its memory.
        num_operations: how many of the recipe's operations had been done.
        size, stride, offset, dtype: which part of the memory it is.
    """

    recipe: Recipe
    num_operations: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def to(cls, tensor: torch.Tensor) -> Reference:
        """The tensor as it is now."""
        recipe = recipe_of(tensor)
        assert recipe is not None, "only deferred tensors are referred to"
        return cls(
            recipe,
            len(recipe.operations),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            tensor.dtype,
        )


# By the memory and not by the tensor: a Parameter is another tensor than the one it is made of.
_recipes: dict[StorageWeakRef, Recipe] = {}


def recipe_of(tensor: torch.Tensor) -> Recipe | None:
    """The recipe of a meta tensor's memory, if it has one."""
    return _recipes.get(StorageWeakRef(tensor.untyped_storage()))


def register_recipe(tensor: torch.Tensor, recipe: Recipe) -> None:
    """Gives the memory of a meta tensor a recipe; those of memory that is gone are dropped."""
    drop_unused_recipes()
    _recipes[StorageWeakRef(tensor.untyped_storage())] = recipe


def drop_unused_recipes() -> None:
    """Forgets the recipes of memory that nothing refers to."""
    for key in [key for key in _recipes if key.expired()]:
        del _recipes[key]


def replay(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a deferred tensor on the CPU, with its strides; itself stays as it is."""
    with torch.no_grad():
        return _resolved(Reference.to(tensor), {})


def _resolved(reference: Reference, done: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    memory = _memory(reference.recipe, reference.num_operations, done)
    if memory.dtype != reference.dtype:
        memory = memory.view(reference.dtype)
    return memory.as_strided(reference.size, reference.stride, reference.offset)


def _memory(
    recipe: Recipe, num_operations: int, done: dict[tuple[int, int], torch.Tensor]
) -> torch.Tensor:
    """The memory after so many operations."""
    key = id(recipe), num_operations
    if key in done:
        return done[key]
    memory = _call(recipe.operations[0], None, recipe, done)[recipe.output]
    for number, operation in enumerate(recipe.operations[1:num_operations], start=1):
        done[id(recipe), number] = memory  # what the operation writes to
        _call(operation, memory, recipe, done)
        del done[id(recipe), number]
    done[key] = memory
    return memory


def _call(
    operation: Operation,
    memory: torch.Tensor | None,
    recipe: Recipe,
    done: dict[tuple[int, int], torch.Tensor],
) -> list[torch.Tensor]:
    def resolve(value: Any) -> Any:
        return _resolved(value, done) if isinstance(value, Reference) else value

    args, kwargs = tree_map(resolve, operation.args), tree_map(resolve, operation.kwargs)
    if operation.generator_state is None:
        result = operation.func(*args, **kwargs)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(operation.generator_state)
            result = operation.func(*args, **kwargs)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
