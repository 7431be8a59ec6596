"""The whole config: the one place that says which settings exist, and what they mean."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from msam_scale.config.sections.base import Section
from msam_scale.config.sections.experiment import DataSection, ModelSection, RunSection
from msam_scale.config.sections.faults import FaultsSection
from msam_scale.config.sections.method import BatchSection, ObjectiveSection
from msam_scale.config.sections.optimization import (
    OptimizerSection,
    ScheduleSection,
    TrainingSection,
)
from msam_scale.config.sections.system import (
    CheckpointSection,
    MonitorSection,
    Precision,
    ShardingSection,
)
from msam_scale.config.yaml_text import write_yaml


class Config(Section):
    """Settings of one mSAM training run."""

    run: RunSection = Field(default_factory=RunSection)
    """The run's name, folder and seed."""

    model: ModelSection = Field(default_factory=ModelSection)
    """Which model is trained, and how it is built."""

    data: DataSection = Field(default_factory=DataSection)
    """Where the data is, and how samples become inputs."""

    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    """The loss that is minimised."""

    batch: BatchSection
    """The mini-batch of one optimizer step."""

    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    """The rule that turns averaged gradients into new weights."""

    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    """How the learning rate changes."""

    training: TrainingSection = Field(default_factory=TrainingSection)
    """The length of the training, and options of its loop."""

    sharding: ShardingSection = Field(default_factory=ShardingSection)
    """How the training state is spread over ranks."""

    precision: Precision = "float32"
    """Number format the model computes in. Master weights, gradients and their sums are float32 or
    wider in any case. `float32` by default; `float64` is for checking results."""

    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    """When the state of training is saved."""

    monitor: MonitorSection = Field(default_factory=MonitorSection)
    """What is reported during training, and how often."""

    faults: FaultsSection = Field(default_factory=FaultsSection)
    """What is done when a run hangs, or is asked to stop."""

    def to_dict(self) -> dict[str, Any]:
        """Every setting, defaults filled in, as plain dicts, lists, numbers and text."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """Every setting, defaults filled in, as YAML that loads to an equal config."""
        return write_yaml(self.to_dict())
