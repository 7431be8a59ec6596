"""Stopping in order and never hanging: signals, launchers that are gone, a watchdog, lost ranks."""

from msam_scale.supervision.stop_request import StopAgreedError, StopRequest
from msam_scale.supervision.supervision import Supervision
from msam_scale.supervision.watchdog import Watchdog

__all__ = ["StopAgreedError", "StopRequest", "Supervision", "Watchdog"]
