"""A model's repeated layers: what is gathered, recomputed and compiled one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from data_pipelines.errors import UserError, a_few

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(model: nn.Module, *, names: Sequence[str] | None = None) -> list[nn.Module]:
    """The blocks of a model, in the order of `model.modules()`; none contains another.

    By default those classes that a transformers model names itself (`_no_split_modules`), or else
    the innermost members of module lists that are made of several layers: transformer blocks,
    residual blocks. A module that shares a parameter with the rest of the model is no block.

    Args:
        model: any model.
        names: class names of the blocks, in place of the search.

    Raises:
        UserError: a name is none of a module's class, or only of modules that share parameters.
    """
    hint = getattr(model, "_no_split_modules", None)
    if names is not None:
        found = _of_classes(model, set(names))
        present = {_class_name(module) for module in found}
        if missing := sorted(set(names) - present):
            classes = sorted({_class_name(module) for module in model.modules()})
            raise UserError(
                f"sharding.blocks: no layer of class {missing[0]} in the model that lies "
                f"outside the other blocks and shares no parameter with the rest; its classes: "
                f"{a_few(classes, most=12)}"
            )
        return found
    if hint and (found := _of_classes(model, set(hint))):
        return found
    return _apart(model, list(_members_of_lists(model)))


def _of_classes(model: nn.Module, names: set[str]) -> list[nn.Module]:
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module is not model and module not in inside and _class_name(module) in names:
            found.append(module)
            inside.update(module.modules())
    return _apart(model, found)


def _members_of_lists(model: nn.Module) -> Iterator[nn.Module]:
    """Composite modules in lists that hold no such module themselves."""
    for child in model.children():
        inner = list(_members_of_lists(child))
        yield from inner
        if not inner and isinstance(model, _LISTS) and _is_composite(child):
            yield child


def _is_composite(module: nn.Module) -> bool:
    holders = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    return len(holders) > 1


def _apart(model: nn.Module, candidates: list[nn.Module]) -> list[nn.Module]:
    """Those that share no parameter and no module with the rest of the model."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    kept = []
    for candidate in dict.fromkeys(candidates):
        inside: dict[int, int] = {}
        for module in candidate.modules():
            for parameter in module.parameters(recurse=False):
                inside[id(parameter)] = inside.get(id(parameter), 0) + 1
        if inside and all(owners[key] == count for key, count in inside.items()):
            kept.append(candidate)
    return kept


def _class_name(module: nn.Module) -> str:
    return type(module).__name__
