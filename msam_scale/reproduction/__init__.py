"""The paper's tables and figures as experiments: many runs over seeds, then one table."""

from msam_scale.reproduction.cells import Cell, Plan, make_plan
from msam_scale.reproduction.experiment import (
    Experiment,
    experiment_names,
    find_experiment,
    load_experiment,
)
from msam_scale.reproduction.reproduce import Outcome, reproduce

__all__ = [
    "Cell",
    "Experiment",
    "Outcome",
    "Plan",
    "experiment_names",
    "find_experiment",
    "load_experiment",
    "make_plan",
    "reproduce",
]
