"""The README, to the letter: its commands and its code run, its table is what the schema says."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ports import free_port
from rank_pool import OnRanks
from runs_on_ranks import train

from launch.cli import _parse, main
from msam_scale.config.document import markdown_table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
WHAT_THE_README_USES = ("Makefile", "pyproject.toml", "configs", "launch")
# A few steps instead of epochs; of two settings of a key the last one stands.
SHORT = ("training.epochs=null", "training.steps=2", "training.eval_every=2")
QUIET = ("monitor.progress=false",)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout whose `.venv` is the environment that runs the tests."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
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


# In short: each command's words are understood by what they are for, and its run takes two steps.


@pytest.fixture
def in_short(checkout: Path, monkeypatch: pytest.MonkeyPatch, on_ranks: OnRanks) -> InShort:
    """Runs commands in the checkout."""
    monkeypatch.chdir(checkout)
    return InShort(checkout, on_ranks)


class InShort:
    """Runs commands of the README in this process and on ranks that are there already."""

    def __init__(self, checkout: Path, on_ranks: OnRanks) -> None:
        self._checkout, self._on_ranks = checkout, on_ranks
        self.programs: set[str] = set()

    def run(self, command: str) -> None:
        """One command."""
        program, *words = shlex.split(command)
        name = Path(program).name or program
        self.programs.add(name)
        if name == "make":
            self._make(words)
        elif name == ".":
            assert (self._checkout / words[0]).is_file()
        elif name == "msam-scale":
            self._msam_scale(words)
        elif name in ("torchrun", "deepspeed"):
            self._launch(name, words)
        else:
            self._tensorboard(name, words)

    def _make(self, words: list[str]) -> None:
        done = run(shlex.join(["make", "-n", *words]), folder=self._checkout)
        lines = [line for line in done.splitlines() if line.startswith(".venv/bin/")]
        assert len(lines) == 2, done
        for line in lines:
            assert (self._checkout / shlex.split(line)[0]).exists(), line
            self.run(line)

    def _msam_scale(self, words: list[str]) -> None:
        if words[0] != "train":
            assert main(words) == 0, words
            return
        arguments = _parse(words)
        if arguments.nproc is None:
            assert main([*words, *SHORT, *QUIET]) == 0, words
        else:
            self._train(arguments.nproc, arguments.config, arguments.overrides)

    def _launch(self, name: str, words: list[str]) -> None:
        if name == "torchrun":
            from torch.distributed.run import parse_args

            found = parse_args(words)
            num_ranks, script = int(found.nproc_per_node), found.training_script
            of_script = found.training_script_args
        else:
            from deepspeed.launcher.runner import parse_args

            found = parse_args(words)
            num_ranks, script, of_script = found.num_gpus, found.user_script, found.user_args
        assert (self._checkout / script).is_file()
        assert Path(script) == Path("launch/train.py")
        config, *overrides = of_script
        self._train(num_ranks, config, overrides)

    def _train(self, num_ranks: int, config: str, overrides: list[str]) -> None:
        words = [*overrides, *SHORT, *QUIET]
        self._on_ranks(num_ranks, train, config, str(self._checkout), words)

    def _tensorboard(self, name: str, words: list[str]) -> None:
        from tensorboard.program import TensorBoard

        assert (Path(sys.executable).parent / name).is_file()
        board = TensorBoard()
        board.configure([name, *words, "--inspect"])
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert board.main() == 0
        assert "loss/train" in said.getvalue()


def test_every_command_works_in_short(in_short: InShort, checkout: Path) -> None:
    for block in blocks("bash"):
        for command in block.splitlines():
            in_short.run(command)
    programs = {"make", ".", "msam-scale", "torchrun", "deepspeed", "tensorboard"}
    assert in_short.programs == programs, "the README has commands of other programs"
    names = {path.name for path in (checkout / "runs").iterdir()}
    assert names == {"quickstart", "quickstart_vit", "one-rank", "fsdp", "zero3"}
    assert (checkout / "curves.png").stat().st_size > 10_000


# At full length.


@pytest.mark.part("readme")
@pytest.mark.usefixtures("fixed_ports")
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
    port = free_port()
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


def test_the_code_works(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    loss, gradient_norm, ascent_norm, skipped = capsys.readouterr().out.split()
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
