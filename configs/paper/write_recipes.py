"""Writes the paper's recipes beside this file: one for each cell of tables C.1, C.2 and D.1.

Those of ImageNet come in sharded variants, too, in `sharded/`.

    python configs/paper/write_recipes.py

The numbers come from `tables.yaml`. What the paper leaves open is decided in `decisions.yaml` and
here, and every config says so in comments that start with "open:".
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msam_scale.config.yaml_text import read_yaml

FOLDER = Path(__file__).parent
ALGORITHMS = {"vanilla": "vanilla training", "sam": "SAM", "msam": "mSAM"}

_SHARDED = ("fsdp", "zero3")
_TOKENIZER = "FacebookAI/roberta-base"
_SOURCES = {
    "cola": "CoLA",
    "mrpc": "MRPC",
    "sst2": "SST-2",
    "qqp": "QQP",
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "imagenet": "imagenet",
}
# Epochs between two checkpoints; they have no influence on the result.
_CHECKPOINT_EPOCHS = {"C.1": 5, "C.2": 2, "D.1": 1}
_WIDTH = 100


@dataclass(frozen=True)
class Recipe:
    """One cell of a table, with one of the three ways to train.

    Attributes:
        table: its name.
        num_gpus: on which the paper trained.
        model: a key of the table's `models`.
        column: the table's numbers for that model.
        decisions: what `decisions.yaml` has for it.
        dataset: a key of `datasets` in `tables.yaml`.
        title: the data set's usual name.
        num_samples: of its training split.
        algorithm: a key of `ALGORITHMS`.
        strategy: how parameters are sharded.
    """

    table: str
    num_gpus: int
    model: str
    column: Mapping[str, Any]
    decisions: Mapping[str, Any]
    dataset: str
    title: str
    num_samples: int
    algorithm: str
    strategy: str = "replicated"

    @property
    def file_name(self) -> str:
        """Name of the config file."""
        cell = f"{self.dataset}_{self.model}" if self.table != "D.1" else f"glue_{self.dataset}"
        if self.strategy == "replicated":
            return f"{cell}_{self.algorithm}.yaml"
        return f"sharded/{cell}_{self.algorithm}_{self.strategy}.yaml"

    @property
    def num_parts(self) -> int:
        """The number of micro-batches that m is of; 1 without mSAM."""
        return int(self.column["m"]) if self.algorithm == "msam" else 1

    @property
    def steps_per_epoch(self) -> int:
        """Whole mini-batches of an epoch."""
        return self.num_samples // int(self.column["batch_size"])


def read_tables() -> dict[str, Any]:
    """The content of `tables.yaml`."""
    return _read("tables.yaml")


def all_recipes() -> list[Recipe]:
    """Every cell of the tables, and the sharded variants of ImageNet's."""
    recipes = [*_image_recipes(), *_text_recipes()]
    return recipes + [
        replace(recipe, strategy=strategy)
        for recipe in recipes
        if recipe.dataset == "imagenet"
        for strategy in _SHARDED
    ]


def _text_recipes() -> list[Recipe]:
    tables, decisions = read_tables(), _read("decisions.yaml")
    table = tables["D.1"]
    return [
        Recipe(
            table="D.1",
            num_gpus=table["num_gpus"],
            model=model,
            column={
                **task,
                "printed_name": table["model"],
                "peak_learning_rate": task["learning_rate"],
                "batch_size": table["batch_size"],
                "m": table["m"],
                **dict.fromkeys(("momentum", "label_smoothing", "gradient_clipping")),
            },
            decisions=decisions["D.1"][model],
            dataset=dataset,
            title=tables["datasets"][dataset]["title"],
            num_samples=tables["datasets"][dataset]["num_samples"],
            algorithm=algorithm,
        )
        for dataset, task in table["tasks"].items()
        for model in decisions["D.1"]
        for algorithm in ALGORITHMS
    ]


def _image_recipes() -> list[Recipe]:
    tables, decisions = read_tables(), _read("decisions.yaml")
    return [
        Recipe(
            table=table,
            num_gpus=tables[table]["num_gpus"],
            model=model,
            column=column,
            decisions=decisions[table][model],
            dataset=dataset,
            title=tables["datasets"][dataset]["title"],
            num_samples=tables["datasets"][dataset]["num_samples"],
            algorithm=algorithm,
        )
        for table in ("C.1", "C.2")
        for dataset in tables[table]["datasets"]
        for model, column in tables[table]["models"].items()
        for algorithm in ALGORITHMS
    ]


def recipe_text(recipe: Recipe) -> str:
    """The config file of a recipe."""
    parts = (
        *(_header, _model, _data, _objective, _batch, _optimizer, _schedule, _training),
        *(_sharding, _rest),
    )
    return "\n".join(line for part in parts for line in part(recipe)) + "\n"


def main() -> None:
    """Writes all recipes."""
    for recipe in all_recipes():
        (FOLDER / recipe.file_name).parent.mkdir(exist_ok=True)
        (FOLDER / recipe.file_name).write_text(recipe_text(recipe), "utf-8")


def _header(recipe: Recipe) -> Iterator[str]:
    dataset = recipe.dataset
    what = f"{recipe.column['printed_name']} on {recipe.title}, {ALGORITHMS[recipe.algorithm]}"
    yield f"# {what}: arXiv 2302.09693, table {recipe.table}."
    tokenizer = f" --tokenizer {_TOKENIZER}" if recipe.table == "D.1" else ""
    yield "# Written by write_recipes.py; numbers without a comment are the table's. On the paper's"
    yield "# number of GPUs:"
    prepare = f"msam-scale data prepare {dataset} --source {_SOURCES[dataset]} --out data/{dataset}"
    yield f"#   {prepare}{tokenizer}"
    yield f"#   msam-scale train configs/paper/{recipe.file_name} --nproc {recipe.num_gpus}"
    yield "run:"
    yield from _open("the seeds of the five runs. 0 to 4")
    yield "  seed: 0"


def _model(recipe: Recipe) -> Iterator[str]:
    yield "model:"
    yield from _open(recipe.decisions["about_model"])
    yield from _settings(recipe.decisions["model"])


def _data(recipe: Recipe) -> Iterator[str]:
    settings = dict(recipe.decisions["data"])
    if "transform" in settings:
        settings["transform"] = settings["transform"].format(dataset=recipe.dataset)
    yield "data:"
    yield f"  train: data/{recipe.dataset}/train"
    yield f"  val: data/{recipe.dataset}/val"
    yield from _open(recipe.decisions["about_data"])
    yield from _settings(settings)


def _objective(recipe: Recipe) -> Iterator[str]:
    yield "objective:"
    yield f"  algorithm: {recipe.algorithm}"
    if recipe.algorithm == "msam":
        yield f"  micro_batches: {recipe.num_parts} # m"
    if recipe.algorithm != "vanilla":
        yield f"  rho: {recipe.column['rho']}"


def _batch(recipe: Recipe) -> Iterator[str]:
    size = recipe.column["batch_size"]
    yield "batch:"
    yield f"  size: {size}"
    if recipe.decisions["batch_norm"]:
        share, micro_batch = size // recipe.num_gpus, size // recipe.num_parts
        which = "a micro-batch"
        if recipe.strategy != "replicated":
            # All GPUs share every micro-batch.
            share = micro_batch // recipe.num_gpus
        if share < micro_batch:
            which = f"one GPU of {recipe.num_gpus}; on more GPUs a smaller number is needed"
        yield from _open(f"what batch normalization normalises over. The samples of {which}")
        yield f"  norm_samples: {min(share, micro_batch)}"


def _optimizer(recipe: Recipe) -> Iterator[str]:
    column = recipe.column
    yield "optimizer:"
    if column["optimizer"] == "SGD":
        yield from _open("Nesterov momentum, and weight decay of biases and norms. No; yes")
    else:
        yield from _open("β and ε, and weight decay of biases and norms. torch's defaults; yes")
    yield f"  name: {column['optimizer'].lower()}"
    rate = column["peak_learning_rate"]
    yield f"  lr: {rate if rate >= 1e-3 else _number(rate)}"
    if column["momentum"] is not None:
        yield f"  momentum: {column['momentum']}"
    yield f"  weight_decay: {_number(column['weight_decay'])}"
    if column["gradient_clipping"] is not None:
        yield f"  clip_norm: {column['gradient_clipping']}"


def _schedule(recipe: Recipe) -> Iterator[str]:
    schedule = recipe.column["learning_rate_schedule"]
    printed = schedule["printed"]
    yield "schedule:"
    if "one cycle" not in printed:
        yield from _open(
            f'the schedule; the table has only "{printed}". One cycle, as in table C.1'
        )
    yield from _open(
        "where one cycle starts and ends. At 1/25 and 1/250000 of the peak, on half cosines, as in "
        "torch; the momentum stays as it is"
    )
    if "step" in printed:
        batch_size, steps = recipe.column["batch_size"], recipe.column["number_of_epochs"]
        steps *= recipe.steps_per_epoch
        yield from _open(
            f"which of the two. 17.7 % of {steps} steps are {round(0.177 * steps)}, and 5000 are "
            f"{5000 / steps * 100:.1f} %; they agree for batches of 4096, not {batch_size}. The "
            "fraction, which is the same number of images for both; the other is `warmup: 5000`"
        )
    yield "  name: one_cycle"
    yield f"  warmup: {schedule['warmup']}"


def _training(recipe: Recipe) -> Iterator[str]:
    yield "training:"
    yield f"  epochs: {recipe.column['number_of_epochs']}"
    if recipe.column["label_smoothing"] is not None:
        yield f"  label_smoothing: {recipe.column['label_smoothing']}"
    if "metrics" in recipe.decisions:
        yield f"  metrics: [{', '.join(recipe.decisions['metrics'][recipe.dataset])}]"


def _sharding(recipe: Recipe) -> Iterator[str]:
    if recipe.strategy != "replicated":
        yield "sharding:"
        yield f"  strategy: {recipe.strategy} # the paper's runs were replicated"


def _rest(recipe: Recipe) -> Iterator[str]:
    yield from _open("the number format. The one that every GPU has", indent=0)
    yield "precision: float32"
    num_epochs = _CHECKPOINT_EPOCHS[recipe.table]
    epochs = "1 epoch" if num_epochs == 1 else f"{num_epochs} epochs"
    yield "checkpoint:"
    yield f"  every: {num_epochs * recipe.steps_per_epoch} # steps: {epochs}"


def _open(text: str, *, indent: int = 2) -> list[str]:
    """A point that the paper leaves open as a comment: what is open, then what is taken."""
    lead = " " * indent + "# "
    return textwrap.wrap(
        f"open: {text}",
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=lead,
        break_on_hyphens=False,
    )


def _settings(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"  {key}: {str(value).lower() if isinstance(value, bool) else value}"


def _number(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if value < 1e-2 else str(value)


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = read_yaml((FOLDER / name).read_text("utf-8"))
    return content


if __name__ == "__main__":
    main()
