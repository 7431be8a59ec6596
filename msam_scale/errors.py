"""The errors a user of the engine may want to catch: everything here can be mended by them."""

from data_pipelines.errors import UserError
from msam_scale.config.problems import ConfigError

__all__ = ["ConfigError", "UserError"]
