"""A training run from a config: data, model, engine, loop, evaluation, reports, checkpoints."""

from msam_scale.training.prepare import PreparedRun, check_run, prepare_run
from msam_scale.training.run import Outcome, run_training

__all__ = ["Outcome", "PreparedRun", "check_run", "prepare_run", "run_training"]
