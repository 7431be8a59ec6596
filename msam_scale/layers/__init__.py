"""Layers whose output in a pass depends on more than their input: masks and batch norms."""

from msam_scale.layers.install import install_layers
from msam_scale.layers.pass_context import PassContext

__all__ = ["PassContext", "install_layers"]
