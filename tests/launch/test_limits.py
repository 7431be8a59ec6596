"""Limits of the machine are named, with what is needed, instead of what failed on their account."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finished_run import FinishedRun

from launch.cli import main


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a path opens one more


def test_too_few_open_files_are_named(
    finished_run: FinishedRun, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it is that the next file cannot be opened."""
    commands = [
        ["checkpoint", "verify", str(finished_run.folder)],
        ["checkpoint", "inspect", str(finished_run.folder)],
        ["data", "bench", str(digits / "val"), "--seconds", "0", "--workers", "1"],
        ["config", "check", str(finished_run.config)],
    ]
    for words in commands:
        assert main(words) == 0, "what is imported is imported"
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    named = 0
    for words in commands:
        for more in range(6):
            limit = _open_files() + more
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                code = main(words)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            said = capsys.readouterr().err
            assert "Traceback" not in said
            assert code == 0 or f"no more than {limit} files may be open" in said, (words, said)
            named += code != 0
    assert named >= len(commands)


@pytest.mark.part("data")
def test_a_small_shared_memory_is_named(digits: Path) -> None:
    unshare = shutil.which("unshare")
    mounts = "mount -t tmpfs -o size=4k tmpfs /dev/shm"
    if unshare is None or subprocess.run([unshare, "-rm", "sh", "-c", mounts]).returncode:
        pytest.skip("no file system can be mounted here")
    bench = f"-m launch.cli data bench {digits / 'val'} --seconds 0 --workers 1"
    line = f"{mounts} && head -c 4096 /dev/zero > /dev/shm/full; exec {sys.executable} {bench}"
    run = subprocess.run([unshare, "-rm", "sh", "-c", line], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "/dev/shm, where processes share memory, has 0 of 4096 bytes free" in run.stderr
