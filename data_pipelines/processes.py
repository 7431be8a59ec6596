"""Independent tasks spread over processes that never outlive the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for_end
from multiprocessing.synchronize import Event
from typing import TypeVar

from data_pipelines.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks handed out ahead for each process: enough to keep it busy, few enough to stop soon.
_TASKS_AHEAD = 2


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, num_workers: int
) -> Iterator[Result]:
    """Yields the results of `function` for all tasks, as they become ready.

    Args:
        function: Picklable, such as a module's function or a `functools.partial` of one.
        tasks: Picklable; taken one by one, a few ahead of the work.
        num_workers: Processes to use; 1 works in this process.

    Raises:
        UserError: `num_workers` is below 1, no process could start, or one was killed from outside.
            What a task raises is raised here, and no further ones are started.
    """
    if num_workers < 1:
        raise UserError(f"workers: {num_workers}, but 1 or more are needed")
    if num_workers == 1:
        yield from map(function, tasks)
        return
    # Not "fork": the caller may have threads, whose locks a forked process would find taken.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_function_module(function)])
    has_started = context.Event()
    executor = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(has_started,)
    )
    waiting = iter(tasks)
    running: set[Future[Result]] = set()
    try:
        while True:
            room = num_workers * _TASKS_AHEAD - len(running)
            running |= {executor.submit(function, task) for task in islice(waiting, room)}
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        if not has_started.is_set():
            raise UserError(
                "no worker process could start: each imports the program's main file first, which "
                'therefore must be a file that does its work below `if __name__ == "__main__":`; '
                "one worker (the default) does without"
            ) from error
        raise UserError(
            "a worker process was killed from outside, for example for want of memory: start "
            "again, maybe with fewer workers; what was finished is kept"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _function_module(function: Callable[..., object]) -> str:
    """Returns the module of a function or of what a `functools.partial` calls."""
    return str(getattr(function, "func", function).__module__)


def _start_worker(has_started: Event) -> None:
    has_started.set()
    # An interrupt of the terminal reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait_for_end([parent.sentinel])
    os._exit(1)
