"""The README, to the letter: its commands and its code run, its table is what the schema says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from msam_scale.config.document import markdown_table

pytestmark = pytest.mark.usefixtures("fixed_ports")
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
WHAT_THE_README_USES = ("Makefile", "pyproject.toml", "configs", "launch")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout whose `.venv` is the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in WHAT_THE_README_USES:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    environment = folder / ".venv"
    environment.mkdir()
    for path in Path(sys.prefix).iterdir():
        (environment / path.name).symlink_to(path)
    (environment / "installed").unlink(missing_ok=True)
    (environment / "installed").touch()
    return folder


def run(commands: str, *, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_every_command_works(checkout: Path) -> None:
    activate = ". .venv/bin/activate\n"
    for block in blocks("bash"):
        server = re.search(r"^tensorboard .*$", block, flags=re.MULTILINE)
        commands = block.replace(server[0], "") if server else block
        out = run(commands if commands.startswith("make") else activate + commands, folder=checkout)
        if "make quickstart" in block:
            accuracy = re.search(r"Validation accuracy ([\d.]+)%", out)
            assert accuracy is not None, out
            assert float(accuracy[1]) >= 99.0
            assert "runs/quickstart" in out
            assert "tensorboard --logdir runs" in out
            assert "Try next" in out
        if "quickstart_vit" in block and "train" in block:
            accuracy = re.search(r"Validation accuracy ([\d.]+)%", out)
            assert accuracy is not None, out
            assert float(accuracy[1]) >= 90.0
        if server is not None:
            serves(server[0], folder=checkout)
    assert (checkout / "curves.png").stat().st_size > 10_000


def serves(command: str, *, folder: Path) -> None:
    """Starts TensorBoard as the README says, on a free port, and asks for its page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    binary = Path(sys.prefix, "bin", command.split()[0])
    words = [str(binary), *command.split()[1:], "--port", str(port)]
    log = folder / "tensorboard.log"
    with log.open("w") as output:
        process = subprocess.Popen(words, cwd=folder, stdout=output, stderr=output)
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    assert page.status == 200
                    return
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
        raise AssertionError(log.read_text())
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_code_works() -> None:
    (code,) = blocks("python")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    loss, gradient_norm, ascent_norm, skipped = done.stdout.split()
    assert float(loss) > 0
    assert float(gradient_norm) > 0
    assert float(ascent_norm) > 0
    assert skipped == "False"


def test_the_settings_are_those_of_the_schema() -> None:
    table = README.partition("checked by the tests -->\n")[2].partition("<!-- end of settings")[0]
    assert table == markdown_table()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
