"""Where in this project's code something waits or failed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType

import data_pipelines
import msam_scale

_FOLDERS = tuple(Path(str(package.__file__)).parent for package in (msam_scale, data_pipelines))


def place_of_main_thread() -> str:
    """The innermost function of this project that the main thread is in: name, file and line."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if (place := _place(frame, frame.f_lineno)) is not None:
            return place
        frame = frame.f_back
    return "code outside of msam_scale"


def place_of_failure(traceback: TracebackType | None) -> str:
    """The innermost function of this project that an exception came through."""
    found = "code outside of msam_scale"
    while traceback is not None:
        found = _place(traceback.tb_frame, traceback.tb_lineno) or found
        traceback = traceback.tb_next
    return found


def _place(frame: FrameType, line: int) -> str | None:
    path = Path(frame.f_code.co_filename)
    for folder in _FOLDERS:
        if path.is_relative_to(folder):
            return f"{frame.f_code.co_name} ({path.relative_to(folder.parent)}:{line})"
    return None
