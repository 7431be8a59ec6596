"""Checkpoints: sharded safetensors and JSON in a folder that appears whole or not at all."""

from msam_scale.checkpoint.errors import DamagedCheckpointError, NotWrittenError
from msam_scale.checkpoint.folder import (
    clear_leftovers,
    mark_latest,
    set_aside,
    step_folders,
    step_of,
)
from msam_scale.checkpoint.manifest import Manifest
from msam_scale.checkpoint.progress import Progress
from msam_scale.checkpoint.shards import Shards
from msam_scale.checkpoint.state import (
    check_names,
    faults_of,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    read_weights,
    snapshot_of,
    start_from_checkpoint,
)
from msam_scale.checkpoint.writer import CheckpointWriter, PendingCheckpoint

__all__ = [
    "CheckpointWriter",
    "DamagedCheckpointError",
    "Manifest",
    "NotWrittenError",
    "PendingCheckpoint",
    "Progress",
    "Shards",
    "check_names",
    "clear_leftovers",
    "faults_of",
    "find_checkpoint",
    "load_checkpoint",
    "load_weights",
    "mark_latest",
    "read_weights",
    "set_aside",
    "snapshot_of",
    "start_from_checkpoint",
    "step_folders",
    "step_of",
]
