"""What is done when something goes wrong around a run; none of it changes the result."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from msam_scale.config.sections.base import Section

Seconds = Annotated[float, Field(gt=0, lt=1e6)]


class FaultsSection(Section):
    """Limits of time for a run that hangs or is to stop."""

    timeout: Seconds | None = 1800.0
    """Seconds without any progress (a step, a batch, a checkpoint) after which a rank says where it
    hangs and which ranks are behind, and ends. 1800 by default, for models that compile long and
    slow disks; `null`: never."""

    grace: Seconds = 30.0
    """Seconds that a run has to stop in order and save when a signal asks for it; a process that is
    still there then ends itself. 30 by default, after which launchers kill. A step, an evaluation's
    batch and a checkpoint have to fit."""
