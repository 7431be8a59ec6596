"""Configs: one schema for YAML, JSON and the command line, checked as a whole before use."""

from msam_scale.config.checks import check_config, check_for_training
from msam_scale.config.load import load_config
from msam_scale.config.problems import ConfigError, Problem
from msam_scale.config.schema import Config

__all__ = [
    "Config",
    "ConfigError",
    "Problem",
    "check_config",
    "check_for_training",
    "load_config",
]
