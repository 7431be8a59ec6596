"""The package stands alone, and its public names are there."""

import ast
from pathlib import Path

import data_pipelines


def test_nothing_above_it_is_imported() -> None:
    files = list(Path(data_pipelines.__path__[0]).rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            module = getattr(node, "module", None) or ""
            for name in [*names, module, *(f"{module}.{each}" for each in names)]:
                assert name.split(".")[0] not in {"msam_scale", "launch", "deepspeed"}, file
                assert not name.startswith("torch.distributed"), file


def test_public_names_are_there() -> None:
    for name in data_pipelines.__all__:
        assert hasattr(data_pipelines, name)
