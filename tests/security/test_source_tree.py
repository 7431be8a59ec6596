"""No code of ours can run what it reads: no unpickling, no evaluation, no shell, no unpacking."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("data_pipelines", "msam_scale", "launch")

_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# By their full names, as they are called or imported.
_QUALIFIED = {
    "torch.load",
    "torch.hub.load",
    "yaml.load",
    "np.load",
    "numpy.load",
    "os.system",
    "os.popen",
    "shutil.unpack_archive",
}
# By the last part of their names. A call without arguments is a method of ours: `module.eval()`.
_FUNCTIONS = {
    "eval",
    "exec",
    "compile",
    "extractall",
    "unsafe_load",
    "full_load",
    "read_pickle",
    "load_state_dict_from_url",
    "gather_object",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
    "all_gather_object",
    "broadcast_object_list",
}
# What a call may say, and only that.
_SAFE_ARGUMENTS = {"shell": "False", "trust_remote_code": "False", "allow_pickle": "False"}
_SAFE_CALLS = {
    # Refuses objects, which would be unpickled.
    ("np.load", "allow_pickle", "False"),
    # A SafeLoader, which makes plain data only.
    ("yaml.load", "Loader", "_Loader"),
}

# The objects that torch.distributed pickles come from ranks of the same run, never from a file.
_BETWEEN_RANKS = {
    ("msam_scale/ranks.py", "dist.all_gather_object"),
    ("msam_scale/ranks.py", "dist.broadcast_object_list"),
}
_ALLOWED = _BETWEEN_RANKS | {
    # Unpickles with stand-ins for the three names it allows; nothing that a pickle names runs.
    ("data_pipelines/preparation/safe_pickle.py", "pickle"),
    # A command that is given as `pipe:COMMAND`, and only where `allow_commands` is set.
    ("data_pipelines/sources/command_pipe.py", "shell=True"),
}


def _suspicious(source: str) -> Iterator[tuple[str, int]]:
    """What in a module could run or unpickle something, and in which line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Call):
            yield from ((name, node.lineno) for name in _of_call(node))
            continue
        else:
            continue
        for name in names:
            if name.partition(".")[0] in _MODULES or name in _QUALIFIED:
                yield name, node.lineno


def _of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {str(each.arg): ast.unparse(each.value) for each in node.keywords}
    for argument, safe in _SAFE_ARGUMENTS.items():
        if given.get(argument, safe) != safe:
            yield f"{argument}={given[argument]}"
    is_safe = any((name, *each) in _SAFE_CALLS for each in given.items())
    is_method = not node.args and not node.keywords
    # Regular expressions, and models by `torch.compile`; neither is Python source.
    is_other = name in ("re.compile", "torch.compile")
    last = name.rpartition(".")[2]
    if (name in _QUALIFIED and not is_safe) or (
        last in _FUNCTIONS and not is_method and not is_other
    ):
        yield name


def test_nothing_that_is_read_can_run() -> None:
    found = {
        (path.relative_to(_ROOT).as_posix(), name)
        for package in _PACKAGES
        for path in (_ROOT / package).rglob("*.py")
        for name, _ in _suspicious(path.read_text("utf-8"))
    }
    assert found - _ALLOWED == set(), "could run what it reads; see the top of this file"
    assert _ALLOWED - found == set(), "is not there any more"


def test_the_search_finds_what_it_is_for() -> None:
    hostile = [
        "import pickle",
        "from torch import load",
        "torch.load(path, weights_only=True)",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "tar.extractall(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "dist.gather_object(value)",
    ]
    for source in hostile:
        assert list(_suspicious(source)), source
    for source in ("model.eval()", "np.load(path, allow_pickle=False)", "re.compile(pattern)"):
        assert not list(_suspicious(source)), source
