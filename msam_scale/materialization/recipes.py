"""How the values of a deferred tensor come about, and following that once they are needed."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map

from data_pipelines.errors import UserError


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of an operator.

    Attributes:
        func: the operator.
        args: its arguments, deferred tensors as `Reference`s.
        kwargs: likewise.
        generator_state: of the CPU generator that it draws from, before; None where it does not.
        overwrites: whether it sets all of the memory that its first argument is, unread.
        default_dtype: torch's default type when it was called.
        number: its place among all operations.
    """

    func: Any
    args: Any
    kwargs: Any
    generator_state: torch.Tensor | None
    overwrites: bool = False
    default_dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    number: int = field(default_factory=count().__next__)

    def references(self, *, read_only: bool = False) -> Iterator[Reference]:
        """The deferred tensors among its arguments; of these, those that it reads."""
        args = self.args[1:] if self.overwrites and read_only else self.args
        for leaf in tree_leaves((args, self.kwargs)):
            if isinstance(leaf, Reference):
                yield leaf

    def call(self, args: Any, kwargs: Any) -> Any:
        """Calls the operator as it was called, whatever has happened to torch's states since."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.default_dtype)
        try:
            if self.generator_state is None:
                return self.func(*args, **kwargs)
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self.generator_state)
                return self.func(*args, **kwargs)
        finally:
            torch.set_default_dtype(default)


@dataclass(eq=False)
class Recipe:
    """What made a piece of memory and was then done to it, in order.

    Attributes:
        operations: the first one makes the memory, the others write to it.
        output: which tensor of the first operation's result it is.
    """

    operations: list[Operation] = field(default_factory=list)
    output: int = 0


@dataclass(frozen=True, eq=False)
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
        """The tensor as it is now.

        Raises:
            UserError: it is a lazy conjugate or negative, which no part of its memory is.
        """
        recipe = recipe_of(tensor)
        assert recipe is not None, "only deferred tensors are referred to"
        if tensor.is_conj() or tensor.is_neg():
            raise UserError(
                "a deferred initialization cannot repeat lazy conjugates; call resolve_conj() and "
                "resolve_neg() on them, or build this model without it"
            )
        return cls(
            recipe,
            len(recipe.operations),
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            tensor.dtype,
        )

    def within(self, memory: torch.Tensor) -> torch.Tensor:
        """That part of the memory, sharing it."""
        part = torch.empty(0, dtype=self.dtype)
        return part.set_(memory.untyped_storage(), self.offset, self.size, self.stride)


class _Recipes:
    """The recipes by the memory they make, which Parameters share with what they are made of."""

    def __init__(self) -> None:
        self._recipes: dict[StorageWeakRef, Recipe] = {}
        self._sweep_at = self._fewest_to_sweep

    _fewest_to_sweep = 64

    def __len__(self) -> int:
        return len(self._recipes)

    def get(self, tensor: torch.Tensor) -> Recipe | None:
        if not self._recipes or tensor.layout is not torch.strided:
            return None
        return self._recipes.get(StorageWeakRef(tensor.untyped_storage()))

    def set(self, tensor: torch.Tensor, recipe: Recipe) -> None:
        # Only when their number has doubled, or a large model would take quadratic time.
        if len(self._recipes) >= self._sweep_at:
            self.sweep()
        self._recipes[StorageWeakRef(tensor.untyped_storage())] = recipe

    def sweep(self) -> None:
        for key in [key for key in self._recipes if key.expired()]:
            del self._recipes[key]
        self._sweep_at = max(self._fewest_to_sweep, 2 * len(self._recipes))


_recipes = _Recipes()


def recipe_of(tensor: torch.Tensor) -> Recipe | None:
    """The recipe of a meta tensor's memory, if it has one."""
    return _recipes.get(tensor)


def register_recipe(tensor: torch.Tensor, recipe: Recipe) -> None:
    """Gives the memory of a meta tensor a recipe."""
    _recipes.set(tensor, recipe)


def drop_unused_recipes() -> None:
    """Forgets the recipes of memory that nothing refers to."""
    _recipes.sweep()


def num_recipes() -> int:
    """How many are kept."""
    return len(_recipes)


def replay(
    tensor: torch.Tensor, *, memories: MutableMapping[Recipe, torch.Tensor] | None = None
) -> torch.Tensor:
    """The values of a deferred tensor on the CPU, with its strides; itself stays as it is.

    Args:
        tensor: on the meta device, with a recipe.
        memories: what other tensors got; those that share memory share it here, too.
    """
    reference = Reference.to(tensor)
    memories = {} if memories is None else memories
    with torch.no_grad():
        if reference.recipe not in memories:
            memories[reference.recipe] = _made(reference)
        return reference.within(memories[reference.recipe])


def _made(target: Reference) -> torch.Tensor:
    """Repeats what led to a tensor, in the order of then; returns its memory.

    What other tensors were made of on the way is freed after its last use.
    """
    operations = _operations_for(target)
    makes: dict[Operation, list[Recipe]] = {}
    last_use: dict[Recipe, Operation] = {}
    for operation in operations:
        for reference in operation.references():
            last_use[reference.recipe] = operation
    for recipe in {**last_use, target.recipe: None}:
        makes.setdefault(recipe.operations[0], []).append(recipe)
    memories: dict[Recipe, torch.Tensor] = {}

    def resolved(value: Any) -> Any:
        return value.within(memories[value.recipe]) if isinstance(value, Reference) else value

    for operation in operations:
        result = operation.call(
            tree_map(resolved, operation.args), tree_map(resolved, operation.kwargs)
        )
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for recipe in makes.get(operation, ()):
            memories[recipe] = outputs[recipe.output]
        del result, outputs
        for reference in operation.references():
            recipe = reference.recipe
            if recipe is not target.recipe and last_use[recipe] is operation:
                memories.pop(recipe, None)
    return memories[target.recipe]


def _operations_for(target: Reference) -> list[Operation]:
    """All that a tensor depends on, in the order they were done in."""
    found: set[Operation] = set()
    pending = [target]
    while pending:
        reference = pending.pop()
        done = reference.recipe.operations[: reference.num_operations]
        # Constructors often initialise a parameter twice: the first time does not matter.
        start = max((n for n, operation in enumerate(done) if operation.overwrites), default=0)
        new = {done[0], *done[start:]} - found
        found |= new
        for operation in new:
            pending += operation.references(read_only=True)
    return sorted(found, key=lambda operation: operation.number)
