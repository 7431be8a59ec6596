"""Ends a process that makes no progress, and says where it hangs and which ranks are behind."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from data_pipelines.errors import a_few
from msam_scale.supervision.heartbeats import Heartbeats
from msam_scale.supervision.own_frames import place_of_main_thread

_MOST_SECONDS_BETWEEN_LOOKS = 1.0
_HANGS = 1  # the exit code
# https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html
_SIZE, _PIPE, _DUMP = (
    "TORCH_FR_BUFFER_SIZE",
    "TORCH_NCCL_DEBUG_INFO_PIPE_FILE",
    "TORCH_FR_DUMP_TEMP_FILE",
)
_SECONDS_TO_DUMP = 10.0


def record_collectives(*, rank: int) -> None:
    """Has torch's flight recorder keep the last collectives of NCCL, and dump them when asked to.

    Before the process group is made. What the environment says already stays.
    """
    # No folder that others may write, and one name for all ranks, by which torch's reader merges.
    folder = Path("~/.cache/msam_scale").expanduser()
    stem = str(folder / f"collectives-{os.environ.get('MASTER_PORT', os.getpid())}-rank-")
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in ((_SIZE, "2000"), (_PIPE, stem), (_DUMP, stem)):
            os.environ.setdefault(name, value)
        Path(f"{os.environ[_DUMP]}{rank}").unlink(missing_ok=True)  # of an earlier run


class Watchdog:
    """A thread that waits for beats.

    The time that the whole process is stopped (`SIGSTOP`, a suspended job) does not count.

    Args:
        timeout: seconds without a beat after which the process ends; None: never.
        rank: of this process, for what it says.
    """

    def __init__(self, *, timeout: float | None, rank: int) -> None:
        self._timeout, self._rank = timeout, rank
        self._mark = (0, "starting")
        self.heartbeats: Heartbeats | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @property
    def mark(self) -> tuple[int, str]:
        """Step and phase of the last beat."""
        return self._mark

    def start(self) -> None:
        """Starts to watch."""
        if self._timeout is not None:
            self._thread.start()

    def beat(self, *, phase: str, step: int | None = None) -> None:
        """Marks progress.

        Args:
            phase: what begins: `starting`, `loading data`, `step`, `evaluation`, `sharpness` or
                `saving`.
            step: the step that it belongs to; by default that of the last beat.
        """
        # A new tuple each time, which the thread tells from the last one by its identity.
        self._mark = (self._mark[0] if step is None else step, phase)

    def close(self) -> None:
        """Watches no longer."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        if (pipe := self._pipe) is not None:
            pipe.unlink(missing_ok=True)

    @property
    def _pipe(self) -> Path | None:
        """Into which something is written to have torch dump its flight recorder."""
        stem = os.environ.get(_PIPE)
        return Path(f"{stem}{self._rank}.pipe") if stem else None

    def _watch(self) -> None:
        assert self._timeout is not None
        interval = min(_MOST_SECONDS_BETWEEN_LOOKS, self._timeout / 10)
        seen, waited, last_look = self._mark, 0.0, time.monotonic()
        while not self._closed.wait(interval):
            now = time.monotonic()
            # A look that comes far too late says that the process was stopped.
            waited += min(now - last_look, 2 * interval)
            last_look = now
            if self._mark is not seen:
                seen, waited = self._mark, 0.0
            elif waited > self._timeout:
                self._end()

    def _end(self) -> None:
        try:
            step, phase = self._mark
            place = place_of_main_thread()
            faulthandler.dump_traceback(file=2, all_threads=True)
            dump = self._dumped_collectives()
            behind = self._ranks_behind(step, phase)
            text = (
                f"msam-scale, rank {self._rank}: no progress for {self._timeout:g} s in {phase} of "
                f"step {step}; waiting in {place}{behind}{dump}\n"
            )
            # os.write: another thread may hold the lock of sys.stderr for ever.
            os.write(2, text.encode())
        finally:
            os._exit(_HANGS)

    def _dumped_collectives(self) -> str:
        """Where torch's flight recorder is, in words; nothing where there is none, as with gloo."""
        if (pipe := self._pipe) is None:
            return ""
        dump = Path(f"{os.environ.get(_DUMP, '')}{self._rank}")
        with suppress(OSError):
            writing = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # fails where nobody reads
            os.write(writing, b"1")
            end = time.monotonic() + _SECONDS_TO_DUMP
            while not dump.is_file() and time.monotonic() < end:
                time.sleep(_MOST_SECONDS_BETWEEN_LOOKS / 10)
            pipe.unlink(missing_ok=True)
        if not dump.is_file():
            return ""
        return (
            f"; torch's flight recorder of the last collectives is in {dump} "
            "(python -m torch.distributed.flight_recorder.fr_trace reads it)"
        )

    def _ranks_behind(self, step: int, phase: str) -> str:
        if self.heartbeats is None:
            return ""
        found = self.heartbeats.survey()
        if found is None:
            return "; which ranks have not come as far is not known: their store does not answer"
        beats, silent = found
        parts = []
        for rank in sorted({*silent, *beats} - {self._rank}):
            beat = beats.get(rank)
            if beat is None:
                parts.append(f"rank {rank} (never heard of)")
            elif rank in silent or beat.is_behind(step, phase):
                state = ", no longer heard of" if rank in silent else ""
                parts.append(f"rank {rank} ({beat.phase} of step {beat.step}{state})")
        return f"; ranks that have not come as far: {a_few(parts, most=16) or 'none'}"
