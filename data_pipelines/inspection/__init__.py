"""Looks at prepared data: is it whole, and how fast is it read?"""

from data_pipelines.inspection.bench import BenchReport, StageTime, bench_split
from data_pipelines.inspection.check import CheckReport, check_dataset
from data_pipelines.inspection.check_shard import Problem

__all__ = [
    "BenchReport",
    "CheckReport",
    "Problem",
    "StageTime",
    "bench_split",
    "check_dataset",
]
