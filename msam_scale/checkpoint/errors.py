"""What can be wrong with a checkpoint."""

from __future__ import annotations

from data_pipelines.errors import UserError


class DamagedCheckpointError(UserError):
    """A checkpoint is not as it was written; the message names the file."""


class NotWrittenError(UserError):
    """A checkpoint could not be written, on all ranks alike; the earlier ones are as they were."""
