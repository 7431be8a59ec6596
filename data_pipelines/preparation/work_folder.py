"""The unfinished data set beside its place, which a later start continues."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock

from data_pipelines.durable_files import flush, rename_to_new, replace_file
from data_pipelines.errors import UserError, a_few
from data_pipelines.preparation.staging import is_staged

_PLAN_FILE = "plan.json"


class WorkFolder:
    """The folder `.NAME.unfinished` beside the folder NAME that is to be made.

    Attributes:
        root: It.
        directory: What becomes the data set.
        scratch: Files that are needed until then.
        shard_records: What was written, a file a shard.
    """

    def __init__(self, target: Path) -> None:
        """Names the folder; `opened` makes it."""
        self._target = target
        self.root = target.with_name(f".{target.name}.unfinished")
        self.directory = self.root / "data"
        self.scratch = self.root / "scratch"
        self.shard_records = self.root / "shards"

    @contextlib.contextmanager
    def opened(self, *, restart: bool) -> Iterator[None]:
        """Makes or finds the folder and keeps other preparations out of it meanwhile.

        When the block raises before anything was finished that a later start could use, the folder
        is removed.

        Args:
            restart: Begin anew, even when there is unfinished work.

        Raises:
            UserError: Another process is at work here.
            OSError: The folder cannot be made.
        """
        self.root.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.root.with_suffix(".lock"))
        # The library takes a place where no file can be made for a lock that another one holds.
        Path(lock.lock_file).touch()
        try:
            held = lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise UserError(
                f"{self._target}: is being prepared by another process; wait until it is done"
            ) from error
        with held:
            try:
                if restart and self.root.exists():
                    shutil.rmtree(self.root)
                for folder in (self.directory, self.scratch, self.shard_records):
                    folder.mkdir(parents=True, exist_ok=True)
                for left_over in list(self.root.rglob(".*.partial-*")):
                    remove(left_over)
                yield
            except BaseException:
                if not self._holds_work():
                    shutil.rmtree(self.root, ignore_errors=True)
                raise
            finally:
                # While it is held: who waits for it finds it gone and makes a new one.
                Path(lock.lock_file).unlink(missing_ok=True)

    def _holds_work(self) -> bool:
        """Returns whether a later start could use anything that is here."""
        return any(self.shard_records.glob("*")) or any(map(is_staged, self.scratch.glob("*")))

    def check_plan(self, plan: Mapping[str, object]) -> None:
        """Notes what is being made, or checks that it is what was being made before.

        Args:
            plan: Everything that decides the content of the shards.

        Raises:
            UserError: Unfinished work is there from other settings or another input.
        """
        path = self.root / _PLAN_FILE
        text = json.dumps(plan, indent=1, sort_keys=True)
        if not path.exists() or not any(self.shard_records.glob("*")):
            # Nothing is kept; a shard without a record may be of another plan.
            shutil.rmtree(self.directory)
            self.directory.mkdir()
            replace_file(path, text.encode("utf-8"))
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        after = json.loads(text)
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if changed:
            raise UserError(
                f"{self.root}: unfinished work with another {a_few(changed)}; use what it "
                "was begun with, or begin anew with --restart"
            )

    def finish(self) -> None:
        """Moves what was made to its place, where it appears as a whole.

        Raises:
            UserError: Something has come to be there meanwhile.
        """
        for folder, _, _ in os.walk(self.directory):
            flush(Path(folder))
        rename_to_new(
            self.directory, self._target, advice="remove it and start again, which continues"
        )
        flush(self._target.parent)
        shutil.rmtree(self.root)


def remove(path: Path) -> None:
    """Removes a file or a folder with all it holds."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
