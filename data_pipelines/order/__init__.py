"""Which sample comes when: pure functions of the seed, the epoch and the place in it."""

from data_pipelines.order.global_order import GlobalOrder
from data_pipelines.order.lane_order import LaneOrder
from data_pipelines.order.random_streams import augmentation_rng
from data_pipelines.order.registry import ORDERS, SampleOrder, check_order, sample_order
from data_pipelines.order.window_order import WindowOrder

__all__ = [
    "ORDERS",
    "GlobalOrder",
    "LaneOrder",
    "SampleOrder",
    "WindowOrder",
    "augmentation_rng",
    "check_order",
    "sample_order",
]
