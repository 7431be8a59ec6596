"""What is trained, on what data, and where the run is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from msam_scale.config.sections.base import Arguments, Count, PathText, Section, Text, checked_path


def _plain_folder_name(name: str) -> str:
    if name in ("", ".", "..") or not name.isprintable() or any(sign in name for sign in "/\\"):
        raise ValueError("is not a plain folder name; a name without / or \\ works")
    return checked_path(name)


class RunSection(Section):
    """The run: its folder and its seed."""

    name: Annotated[str, AfterValidator(_plain_folder_name)] | None = None
    """Name of the run and of its folder inside `run.dir`; a plain folder name. By default the
    config file's name without its suffix, or `run` when the config is not a file."""

    dir: PathText = "runs"
    """Folder that holds the folders of all runs, relative to where the command is started."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of everything random: initial weights, sample order, augmentation, dropout. Two runs
    with the same seed, batch and micro-batches follow the same trajectory on any layout."""


class ModelSection(Section):
    """The model that is trained."""

    source: Literal["timm", "transformers", "msam_scale"] = "timm"
    """Library that `model.name` is looked up in. timm by default, because it has the vision models
    of the paper's experiments; `msam_scale` holds the few small models this package brings."""

    name: Text | None = None
    """Name of the model in its library, for example `vit_small_patch16_224`. Training from the
    command line needs it; code that hands its own module to `initialize` leaves it out."""

    pretrained: bool = False
    """Start from the library's pretrained weights rather than from random ones. Off by default, so
    that nothing is fetched unless asked for."""

    weights: PathText | None = None
    """Start from the weights in this `.safetensors` file or folder of a checkpoint. As with
    `model.pretrained`, a head for another number of classes starts anew and timm's models take
    another image size. `null`, the default: none."""

    args: Arguments = Field(default_factory=dict)
    """Further keyword arguments of the model's constructor, passed on as they are. Empty by
    default: the library's own defaults."""


class DataSection(Section):
    """The data: where it is, and how samples become inputs."""

    train: Text | None = None
    """Training shards: a folder with an index, or a pattern such as
    `data/train-{000000..000003}.tar`. Training from the command line needs it; code that feeds its
    own batches to `train_step` leaves it out."""

    val: Text | None = None
    """Validation shards, written like `data.train`. Without it (the default) the run is not
    evaluated while it trains."""

    transform: Text = "none"
    """Name of the transform that turns a stored sample into the model's input: augmentation for
    training, preparation for evaluation, mean and standard deviation. `none` by default: pixels
    scaled to [0, 1], nothing else."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Loader processes of each rank. It changes the speed, never the samples or their order. 0 by
    default: samples are read in the training process, which small data sets do best with."""

    order: Text = "global"
    """How the samples of an epoch are ordered. `global`, the default, is one permutation of all
    samples; `window` and `lanes` trade some of its randomness for more sequential reading, how
    much in their parameters: `window:shards=64`, `lanes:lanes=256,shards=2`."""

    cache_dir: PathText | None = None
    """Folder on a local disk that keeps copies of remote shards. `null`, the default: shards are
    read where they are."""

    cache_limit: Annotated[int, Field(ge=0)] | None = None
    """Most bytes that the shards in `data.cache_dir` may take; 0 keeps the indexes of remote data
    only. `null`, the default: no limit."""

    allow_commands: bool = False
    """Allow `pipe:COMMAND` as the location of data, which runs a command of the shell. Off by
    default: look for it before you run a config from elsewhere. Commands that open a run's folder
    take no such consent from the config in it, only from their own `--allow-code`."""

    resident: bool = False
    """Read the training samples once and keep them in each rank's memory: for data sets of small
    images, which are loaded several times faster so. Off by default."""

    memory_limit: Count = 2**30
    """Most bytes of memory that each rank's loader takes, for batches that are loaded ahead or in
    use and for `data.resident` samples; that of the validation data takes as much again. 1 GiB by
    default."""

    on_error: Literal["raise", "substitute"] = "raise"
    """What a damaged training sample does. `raise`, the default, stops the run and names shard and
    sample; `substitute` takes another sample in its place, the same one on any layout."""

    max_bad_samples: Count = 100
    """With `data.on_error: substitute`: more damaged samples than this stop the run."""
