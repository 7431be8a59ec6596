"""Models that are never whole on one rank: built without memory, given values block by block."""

from msam_scale.materialization.deferred import deferred_initialization
from msam_scale.materialization.materialize import check_can_materialize, materialize

__all__ = ["check_can_materialize", "deferred_initialization", "materialize"]
