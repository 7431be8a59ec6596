"""Models that are never whole on one rank: built without memory, given values block by block."""

from msam_scale.materialization.materialize import check_can_materialize, materialize
from msam_scale.materialization.recorder import deferred_initialization

__all__ = ["check_can_materialize", "deferred_initialization", "materialize"]
