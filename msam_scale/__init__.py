"""Micro-batch-averaged sharpness-aware minimization (mSAM) at any scale, with one result."""

from typing import TYPE_CHECKING

from data_pipelines.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from msam_scale.batch_plan import BatchPlan
    from msam_scale.config import Config, load_config
    from msam_scale.engine import Engine
    from msam_scale.errors import ConfigError, NonFiniteError, NonFiniteStepError, UserError
    from msam_scale.initialization import initialize
    from msam_scale.materialization import deferred_initialization
    from msam_scale.step_summary import StepResult

__version__ = "0.1.0"

__all__ = [
    "BatchPlan",
    "Config",
    "ConfigError",
    "Engine",
    "NonFiniteError",
    "NonFiniteStepError",
    "StepResult",
    "UserError",
    "deferred_initialization",
    "initialize",
    "load_config",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "BatchPlan": "batch_plan",
        "Config": "config",
        "ConfigError": "errors",
        "Engine": "engine",
        "NonFiniteError": "errors",
        "NonFiniteStepError": "errors",
        "StepResult": "step_summary",
        "UserError": "errors",
        "deferred_initialization": "materialization",
        "initialize": "initialization",
        "load_config": "config",
    },
)
