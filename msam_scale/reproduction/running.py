"""Does runs as processes of their own, several at a time, and goes on after one has failed."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from data_pipelines.durable_files import replace_file
from data_pipelines.errors import UserError
from msam_scale.reproduction.cells import Cell
from msam_scale.reproduction.measures import Measure
from msam_scale.reproduction.results import measurement_path
from msam_scale.reproduction.state import look_at, wait_until_free

_SECONDS_TO_END = 10.0


@dataclass(frozen=True)
class Resources:
    """What the runs of this machine share.

    Attributes:
        num_jobs: runs at a time.
        num_threads: of each rank, for computing on the CPU.
        devices: GPUs for each of the jobs; None: those that the environment leaves visible.
    """

    num_jobs: int
    num_threads: int
    devices: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True)
class Failure:
    """A run that was not finished.

    Attributes:
        cell: which.
        message: the last that its process has said.
        log: all that it has said; None where it was not started.
    """

    cell: Cell
    message: str
    log: Path | None

    def __str__(self) -> str:
        where = f" ({self.log})" if self.log else ""
        return f"{self.cell.run.name}: {self.message}{where}"


class _ProcessError(Exception):
    """A command ended with another exit code than 0."""

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.log = log


@dataclass
class Runner:
    """Does cells: trains what is not finished and measures what is not measured.

    Attributes:
        command: starts `msam-scale`, as words.
        out: folder for logs and measurements.
        measure: what is measured of each run.
        measure_name: its name.
        resources: what the runs share.
        say: is told what happens, a line at a time.
    """

    command: Sequence[str]
    out: Path
    measure: Measure
    measure_name: str
    resources: Resources
    say: Callable[[str], None]
    _processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _is_stopped: bool = False

    def run(self, cells: Sequence[Cell]) -> list[Failure]:
        """Does the cells, in order as far as several at a time have one.

        An interrupt ends the processes that run; what they have saved is kept.

        Returns:
            Those that failed.
        """
        failures: list[Failure] = []
        slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(self.resources.num_jobs):
            slots.put(slot)
        start = time.monotonic()
        pool = ThreadPoolExecutor(self.resources.num_jobs)
        try:
            waiting: dict[Future[str], Cell] = {
                pool.submit(self._do, cell, slots): cell for cell in cells
            }
            for number, future in enumerate(as_completed(waiting), start=1):
                cell = waiting[future]
                left = (time.monotonic() - start) / number * (len(cells) - number)
                try:
                    outcome = future.result()
                except (_ProcessError, UserError, OSError, ValueError) as error:
                    failures.append(Failure(cell, str(error), getattr(error, "log", None)))
                    outcome = f"FAILED: {failures[-1].message}"
                self.say(
                    f"[{number}/{len(cells)}] {cell.run.name}: {outcome}; "
                    f"about {left / 60:.0f} min left"
                )
        except BaseException:
            self._stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return failures

    def _do(self, cell: Cell, slots: SimpleQueue[int]) -> str:
        slot = slots.get()
        try:
            wait_until_free(cell, say=self.say, is_stopped=lambda: self._is_stopped)
            start = time.monotonic()
            before = look_at(cell)
            if not before.is_finished:
                with self._log(cell, "") as log:
                    self._call(cell.words, log=log, slot=slot, stdout=log)
                if not look_at(cell).is_finished:
                    raise UserError(f"{cell.run}: has not come to its end, but says it has")
            self._follow_up(cell, slot=slot, is_new=not before.is_finished)
            seconds = time.monotonic() - start
            return "was there" if before.is_finished and seconds < 1 else f"{seconds:.0f} s"
        finally:
            slots.put(slot)

    def _follow_up(self, cell: Cell, *, slot: int, is_new: bool) -> None:
        words = self.measure.follow_up(cell.run)
        path = measurement_path(self.measure_name, cell)
        if words is None or (path.is_file() and not is_new):
            return
        with self._log(cell, f"-{self.measure_name}") as log:
            printed = self._call(words, log=log, slot=slot, stdout=subprocess.PIPE)
        json.loads(printed)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, printed)

    @contextmanager
    def _log(self, cell: Cell, suffix: str) -> Iterator[IO[bytes]]:
        path = self.out / "logs" / f"{cell.run.parent.name}-{cell.run.name}{suffix}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as log:
            yield log

    def _call(
        self, words: Sequence[str], *, log: IO[bytes], slot: int, stdout: IO[bytes] | int
    ) -> bytes:
        """Runs `msam-scale WORDS` to its end; returns what it printed into a pipe."""
        with self._guard:
            if self._is_stopped:
                raise UserError("interrupted")
            process = subprocess.Popen(
                [*self.command, *words], stdout=stdout, stderr=log, env=self._environment(slot)
            )
            self._processes.add(process)
        try:
            printed, _ = process.communicate()
        finally:
            with self._guard:
                self._processes.discard(process)
        if process.returncode:
            path = Path(log.name)
            raise _ProcessError(_last_line(path, code=process.returncode), path)
        return printed or b""

    def _environment(self, slot: int) -> dict[str, str]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.resources.num_threads)}
        if self.resources.devices is not None:
            devices = self.resources.devices[slot]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        return environment

    def _stop(self) -> None:
        """Ends the processes; what does not end by itself is killed."""
        with self._guard:
            self._is_stopped = True
            running = list(self._processes)
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_END
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _last_line(log: Path, *, code: int) -> str:
    lines = log.read_text("utf-8", errors="replace").splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if code < 0:
        return f"killed by signal {-code}" + (f"; last line: {said}" if said else "")
    return said.removeprefix("msam-scale: ") or f"exit code {code}, without a word"
