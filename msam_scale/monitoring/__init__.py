"""What a run reports while it trains: metric lines, TensorBoard, progress."""

from msam_scale.monitoring.metrics import METRICS, Metric
from msam_scale.monitoring.monitor import Monitor

__all__ = ["METRICS", "Metric", "Monitor"]
