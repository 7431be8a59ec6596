"""The files of the checkout: which there are, what state they are in, and copies of them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path


def files_of_the_tree(root: Path) -> list[str]:
    """Those that git tracks, or would if they were added; sorted."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted(name for name in listing.split("\0") if name and (root / name).is_file())


def state_of_the_tree(root: Path) -> str:
    """Changes when any file does."""
    digest = hashlib.sha256()
    for name in files_of_the_tree(root):
        content = (root / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def copy_of_the_tree(root: Path, target: Path) -> None:
    """Copies the files of the tree, and nothing else, into a folder that is not there yet."""
    for name in files_of_the_tree(root):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)
