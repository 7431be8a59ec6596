"""Which test process runs which file: one of them keeps the pools of ranks.

Two processes with a pool of 2 and a pool of 4 ranks each would be 14 processes on two cores, and
each pool starts slowly. So files whose tests run on ranks go to one process; it helps with the
others when it has done them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class RanksInOneProcess(LoadFileScheduling):
    """As `--dist loadfile`, but files that use the fixture `on_ranks` stay together."""

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)
        self._root = config.rootpath

    def _assign_work_unit(self, node: WorkerController) -> None:
        scope = self._next_scope(node)
        if scope is not None:
            self.workqueue.move_to_end(scope, last=False)
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        if self.workqueue and not node.shutting_down and self._next_scope(node) is None:
            node.shutdown()
        else:
            super()._reschedule(node)

    def _next_scope(self, node: WorkerController) -> str | None:
        keeps_ranks = node is self.nodes[0]
        waiting = {scope: self._runs_on_ranks(scope) for scope in self.workqueue}
        for scope, runs_on_ranks in waiting.items():
            if runs_on_ranks == keeps_ranks:
                return scope
        return next(iter(waiting), None) if keeps_ranks else None

    def _runs_on_ranks(self, scope: str) -> bool:
        return "on_ranks" in Path(self._root, scope).read_text("utf-8")
