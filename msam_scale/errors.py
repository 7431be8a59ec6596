"""The errors a user of the engine may want to catch."""

from data_pipelines.errors import UserError
from msam_scale.config.problems import ConfigError

__all__ = ["ConfigError", "NonFiniteError", "UserError"]


class NonFiniteError(FloatingPointError):
    """Too many optimizer steps in a row had gradients that are not finite."""
