"""The package stands alone."""

import ast
from pathlib import Path

import data_pipelines


def imported_modules(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_nothing_above_it_is_imported() -> None:
    files = list(Path(data_pipelines.__path__[0]).rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for module in imported_modules(file.read_text(encoding="utf-8")):
            assert module.split(".")[0] not in {"msam_scale", "launch", "deepspeed"}, file
            assert not module.startswith("torch.distributed"), file


def test_public_names_are_there() -> None:
    for name in data_pipelines.__all__:
        assert hasattr(data_pipelines, name)
