"""What a checkpoint keeps of a loader: where it is, and what it must agree with."""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from data_pipelines.errors import UserError

STATE_VERSION = 1

# Of samples and steps, which are counted in signed 64-bit numbers.
_Number = Annotated[int, pydantic.Field(ge=0, lt=1 << 62)]


class BadSampleState(pydantic.BaseModel):
    """A `BadSample` as a checkpoint keeps it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    sample_id: _Number
    where: str
    what: str


class LoaderState(pydantic.BaseModel):
    """The state of a training loader; but for bad samples, the same on all ranks.

    Attributes:
        version: Of this record.
        seed: Of the order and the augmentation.
        epoch: The epoch that the next step belongs to.
        step: Steps done, over all epochs.
        batch_size: Samples of a mini-batch over all ranks.
        micro_batches: Into how many parts it is cut.
        order: The order with all its parameters.
        fingerprint: Of the samples.
        next_samples: The first samples of the next step, which tell whether this program orders
            samples as the one did that wrote the state.
        bad_samples: The damaged samples that were met, with what is wrong with them.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int
    seed: _Number
    epoch: _Number
    step: _Number
    batch_size: Annotated[int, pydantic.Field(ge=1, lt=1 << 62)]
    micro_batches: Annotated[int, pydantic.Field(ge=1, lt=1 << 62)]
    order: str
    fingerprint: str
    next_samples: list[_Number]
    bad_samples: list[BadSampleState]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "LoaderState":
        """Reads a state from a checkpoint.

        Raises:
            UserError: It is not one, or of a version this program does not know.
        """
        version = content.get("version")
        if version != STATE_VERSION:
            raise UserError(f"loader state: version {version!r} is not known, only {STATE_VERSION}")
        try:
            return cls.model_validate(dict(content))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"loader state: {key}: {first['msg']}") from error


def step_to_continue_at(
    saved: LoaderState, now: LoaderState, *, num_samples: int, allows_new_partition: bool
) -> int:
    """Returns the step at which a loader goes on after another one's state.

    Args:
        saved: The state that was saved.
        now: The state of the loader that is to go on.
        num_samples: How many samples there are.
        allows_new_partition: Whether `micro_batches` may differ within an epoch.

    Raises:
        UserError: The loader would not go on with what comes next.
    """
    for what in ("fingerprint", "seed"):
        before, after = getattr(saved, what), getattr(now, what)
        if before != after:
            raise UserError(
                f"loader state: saved with {what} {before}, but this loader has {after}; "
                + ("use the same data" if what == "fingerprint" else "use the same seed")
            )
    steps_per_epoch = num_samples // saved.batch_size
    changed = [
        f"{what} {getattr(saved, what)} before and {getattr(now, what)} now"
        for what in ("order", "batch_size", "micro_batches")
        if getattr(saved, what) != getattr(now, what)
        and not (what == "micro_batches" and allows_new_partition)
    ]
    if saved.step % steps_per_epoch:
        if changed:
            raise UserError(
                f"loader state: saved within epoch {saved.epoch}, with {'; '.join(changed)}: some "
                "samples of the epoch would come twice and others not at all; go on with what it "
                "was saved with, and change it at the end of an epoch"
            )
        return saved.step
    # At the end of an epoch nothing is lost by another order or another number of steps an epoch.
    return saved.step // steps_per_epoch * (num_samples // now.batch_size)
