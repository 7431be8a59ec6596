"""The unfinished data set beside its place, which a later start continues."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock

from data_pipelines.durable_files import replace_file
from data_pipelines.errors import UserError

_PLAN_FILE = "plan.json"


class WorkFolder:
    """A folder `.NAME.unfinished` beside the folder NAME that is to be made.

    Attributes:
        directory: What becomes the data set.
        scratch: Files that are needed until then.
        shard_records: What was written, a file a shard.
    """

    def __init__(self, target: Path) -> None:
        """Names the folder; `opened` makes it."""
        self._target = target
        self._root = target.with_name(f".{target.name}.unfinished")
        self.directory = self._root / "data"
        self.scratch = self._root / "scratch"
        self.shard_records = self._root / "shards"

    @contextlib.contextmanager
    def opened(self, *, restart: bool) -> Iterator[None]:
        """Makes or finds the folder and keeps other preparations out of it meanwhile.

        Args:
            restart: Begin anew, even when there is unfinished work.

        Raises:
            UserError: Another process is at work here.
        """
        self._root.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self._root.with_suffix(".lock"))
        try:
            held = lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise UserError(
                f"{self._target}: is being prepared by another process; wait until it is done"
            ) from error
        with held:
            try:
                if restart and self._root.exists():
                    shutil.rmtree(self._root)
                for folder in (self.directory, self.scratch, self.shard_records):
                    folder.mkdir(parents=True, exist_ok=True)
                for left_over in list(self._root.rglob(".*.partial-*")):
                    remove(left_over)
                yield
            finally:
                # While it is held: who waits for it finds it gone and makes a new one.
                Path(lock.lock_file).unlink(missing_ok=True)

    def check_plan(self, plan: Mapping[str, object]) -> None:
        """Notes what is being made, or checks that it is what was being made before.

        Args:
            plan: Everything that decides the content of the shards.

        Raises:
            UserError: Unfinished work is there from other settings or another input.
        """
        path = self._root / _PLAN_FILE
        text = json.dumps(plan, indent=1, sort_keys=True)
        if not path.exists():
            replace_file(path, text.encode("utf-8"))
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        after = json.loads(text)
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if changed:
            raise UserError(
                f"{self._root}: unfinished work with another {', '.join(changed)}; use what it "
                "was begun with, or begin anew with --restart"
            )

    def finish(self) -> None:
        """Moves what was made to its place, where it appears as a whole.

        Raises:
            UserError: Something has come to be there meanwhile.
        """
        for folder, _, _ in os.walk(self.directory):
            flush(Path(folder))
        try:
            # POSIX: replaces an empty folder, refuses one that holds something.
            self.directory.rename(self._target)
        except OSError as error:
            if not self._target.exists():
                raise
            raise UserError(
                f"{self._target}: there is something here now, and it is never overwritten; remove "
                "it and start again, which continues"
            ) from error
        flush(self._target.parent)
        shutil.rmtree(self._root)


def partial_name(path: Path) -> Path:
    """Returns a hidden name beside `path` for a file that is not finished yet."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


def remove(path: Path) -> None:
    """Removes a file or a folder with all it holds."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
