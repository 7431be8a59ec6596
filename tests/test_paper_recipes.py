"""The recipes of the paper against its tables, its batches on its GPUs, and its models.

What is expected here comes from `configs/paper/tables.yaml` and from the paper's text.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torchvision.models import resnet50
from transformers import RobertaConfig

from data_pipelines import transform_preset
from msam_scale import initialize
from msam_scale.batch_plan import BatchPlan
from msam_scale.config import Config, check_config, load_config
from msam_scale.layers.install import has_batch_norm
from msam_scale.models import ModelRequest, build_model, check_model_name
from msam_scale.optimization.from_config import optimizer_builder
from msam_scale.optimization.schedules import bind_schedule, check_schedule

FOLDER = Path(__file__).parents[1] / "configs" / "paper"
TABLES: dict[str, Any] = yaml.safe_load((FOLDER / "tables.yaml").read_text("utf-8"))
ALGORITHMS = ("vanilla", "sam", "msam")
IMAGE_CELLS = {
    f"{dataset}_{model}_{algorithm}": (table, dataset, model, algorithm)
    for table in ("C.1", "C.2")
    for dataset in TABLES[table]["datasets"]
    for model in TABLES[table]["models"]
    for algorithm in ALGORITHMS
}
TEXT_CELLS = {
    f"glue_{task}_{algorithm}": ("D.1", task, "roberta_base", algorithm)
    for task in TABLES["D.1"]["tasks"]
    for algorithm in ALGORITHMS
}
SHARDED_CELLS = {
    f"sharded/{cell}_{strategy}": place
    for cell, place in IMAGE_CELLS.items()
    if place[1] == "imagenet"
    for strategy in ("fsdp", "zero3")
}
CELLS = {**IMAGE_CELLS, **TEXT_CELLS, **SHARDED_CELLS}
# The body of RoBERTa-base (Liu et al., 2019, section 3), as its settings are published.
ROBERTA = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
WITH_BATCH_NORM = {"cifar_resnet50", "wrn-28-10", "resnet50", "wide_resnet50_2"}
# Images as small as a model takes, so that a step of the whole model is quick.
TINY = {
    "cifar10_resnet50": (8, {}),
    "cifar10_wrn_28_10": (8, {}),
    "cifar10_vit_b16": (32, {"img_size": 32}),
    "imagenet_resnet50": (32, {}),
    "imagenet_wrn_50_2": (32, {}),
    "imagenet_vit_s32": (64, {"img_size": 64}),
}
# Steps of an epoch, whole mini-batches: 50000 / 512, 1281167 / 2048 and / 4096, and 8551, 3668,
# 67349 and 363846 / 32, rounded down.
STEPS_PER_EPOCH = {
    **{(f"cifar{number}", 512): 97 for number in (10, 100)},
    ("imagenet", 2048): 625,
    ("imagenet", 4096): 312,
    ("cola", 32): 267,
    ("mrpc", 32): 114,
    ("sst2", 32): 2104,
    ("qqp", 32): 11370,
}


def column_of(cell: str) -> dict[str, Any]:
    table, dataset, model, _ = CELLS[cell]
    if table != "D.1":
        column: dict[str, Any] = TABLES[table]["models"][model]
        return column
    task = TABLES["D.1"]["tasks"][dataset]
    return {
        **task,
        "peak_learning_rate": task["learning_rate"],
        "batch_size": 32,
        "m": 8,
        **dict.fromkeys(("momentum", "gradient_clipping", "label_smoothing")),
    }


@cache
def load(cell: str) -> Config:
    return load_config(FOLDER / f"{cell}.yaml", for_training=True)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the settings of RoBERTa-base."""
    folder = tmp_path_factory.mktemp("roberta-base")
    RobertaConfig(**ROBERTA).save_pretrained(folder)
    return str(folder)


def num_steps_of(cell: str) -> int:
    column = column_of(cell)
    return int(column["number_of_epochs"] * STEPS_PER_EPOCH[CELLS[cell][1], column["batch_size"]])


def test_the_recipes_are_what_the_script_writes() -> None:
    script = _script()
    expected = {one.file_name: script.recipe_text(one) for one in script.all_recipes()}
    generated = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")}
    generated -= {"tables.yaml", "decisions.yaml"}
    assert generated == set(expected) == {f"{cell}.yaml" for cell in CELLS}
    for name, text in expected.items():
        assert (FOLDER / name).read_text("utf-8") == text, (
            f"{name} is not current; python configs/paper/write_recipes.py writes it"
        )


def test_the_tables_are_the_papers() -> None:
    """A few numbers once more, typed from the paper, so that no edit of the data goes unnoticed."""
    rows = {
        "peak_learning_rate": ([0.5, 0.75, 1e-3], [0.8, 0.5, 3e-3]),
        "batch_size": ([512] * 3, [2048, 2048, 4096]),
        "number_of_epochs": ([200, 200, 20], [90, 100, 300]),
        "momentum": ([0.9, 0.9, None],) * 2,
        "weight_decay": ([5e-4, 5e-4, 0.3], [1e-4, 1e-4, 0.3]),
        "label_smoothing": ([0.1, 0.1, None],) * 2,
        "gradient_clipping": ([None, None, 1],) * 2,
        "rho": ([0.2, 0.2, 0.3], [0.05] * 3),
        "m": ([32] * 3, [4, 8, 8]),
    }
    for row, expected in rows.items():
        for table, values in zip(("C.1", "C.2"), expected, strict=True):
            assert [one[row] for one in TABLES[table]["models"].values()] == values, (table, row)
    tasks = TABLES["D.1"]["tasks"].values()
    assert [task["learning_rate"] for task in tasks] == [1e-5, 1e-5, 5e-6, 2e-5]
    assert [task["number_of_epochs"] for task in tasks] == [60, 60, 20, 15]
    assert [task["rho"] for task in tasks] == [0.01, 0.01, 0.05, 0.05]
    assert [task["weight_decay"] for task in tasks] == [0.01] * 4
    assert (TABLES["D.1"]["batch_size"], TABLES["D.1"]["m"]) == (32, 8)


@pytest.mark.parametrize("cell", CELLS)
def test_a_recipe_has_the_numbers_of_its_column(cell: str) -> None:
    _, dataset, _, algorithm = CELLS[cell]
    column = column_of(cell)
    config = load(cell)
    objective, optimizer, training = config.objective, config.optimizer, config.training
    assert config.batch.size == column["batch_size"]
    assert objective.algorithm == algorithm
    assert objective.micro_batches == (column["m"] if algorithm == "msam" else None)
    if algorithm != "vanilla":
        assert objective.rho == column["rho"]
    assert (objective.ascent, objective.phases) == ("sam", ())
    assert optimizer.name == column["optimizer"].lower()
    assert optimizer.lr == column["peak_learning_rate"]
    assert optimizer.momentum == column["momentum"]
    assert optimizer.weight_decay == column["weight_decay"]
    assert optimizer.clip_norm == column["gradient_clipping"]
    assert optimizer.args == {}
    assert config.schedule.name == "one_cycle"
    assert config.schedule.warmup == column["learning_rate_schedule"]["warmup"]
    assert (training.epochs, training.steps) == (column["number_of_epochs"], None)
    assert training.label_smoothing == (column["label_smoothing"] or 0)
    assert (training.mixup, training.cutmix, training.ema) == (None, None, None)
    assert config.data.train == f"data/{dataset}/train"
    optimizer_builder(config)
    check_model_name(config.model.source, str(config.model.name))
    assert config.model.name in TABLES["published_parameters"]
    assert transform_preset(config.data.transform).size in (None, (224, 224))
    # "Matthews Correlation Coefficient for COLA, and average accuracy for other datasets"
    first = "matthews_correlation" if dataset == "cola" else "accuracy"
    assert config.training.metrics[0] == first
    strategy = cell.rpartition("_")[2] if cell in SHARDED_CELLS else "replicated"
    assert config.sharding.strategy == strategy
    assert config.checkpoint.every is not None
    assert config.checkpoint.every % STEPS_PER_EPOCH[dataset, config.batch.size] == 0


@pytest.mark.parametrize("cell", CELLS)
def test_a_recipe_is_laid_out_on_the_papers_gpus_and_on_fewer(cell: str) -> None:
    (table, _, _, algorithm), config, column = CELLS[cell], load(cell), column_of(cell)
    num_parts = column["m"] if algorithm == "msam" else 1
    for world_size in (1, 2, TABLES[table]["num_gpus"]):
        check_config(config, world_size=world_size)
        shard_group = world_size if cell in SHARDED_CELLS else 1
        plan = BatchPlan(config.batch.size, num_parts, world_size, shard_group)
        assert plan.slice_size % (config.batch.norm_samples or 1) == 0
        assert plan.groups == (1 if cell in SHARDED_CELLS else min(num_parts, world_size))
    # Ghost batches are as large as they can be on those GPUs.
    has_ghosts = config.model.name in WITH_BATCH_NORM
    assert config.batch.norm_samples == (plan.slice_size if has_ghosts else None)
    if table == "C.1" and algorithm == "msam":
        assert (plan.micro_batch_size, plan.groups) == (16, 4), "appendix C"


def schedule_of(cell: str) -> tuple[float, float, int]:
    """Warm-up, peak and number of steps: what schedules differ in."""
    column = column_of(cell)
    warmup = column["learning_rate_schedule"]["warmup"]
    return warmup, column["peak_learning_rate"], num_steps_of(cell)


SCHEDULES = {schedule_of(cell): cell for cell in CELLS}


@pytest.mark.parametrize("cell", SCHEDULES.values())
def test_the_schedule_at_the_length_of_the_paper(cell: str) -> None:
    config, (warmup, peak, num_steps) = load(cell), schedule_of(cell)
    check_schedule(config.schedule, num_steps=num_steps)
    settings = bind_schedule(config.schedule, [{"lr": peak}], num_steps=num_steps)
    # Steps count from 0: the last one of the warm-up has the peak.
    near = round(warmup * num_steps)
    steps = {*range(0, num_steps, num_steps // 200), *range(near - 3, near + 3), num_steps - 1}
    rates = {step: settings(step)[0]["lr"] for step in steps}
    top = max(rates, key=rates.__getitem__)
    assert abs(top + 1 - warmup * num_steps) <= 1
    assert rates[top] == pytest.approx(peak, rel=1e-4)
    assert rates[0] == pytest.approx(peak / 25)
    assert rates[num_steps - 1] == pytest.approx(peak / 250_000)


@pytest.mark.parametrize("name", TABLES["published_parameters"])
def test_a_model_is_the_published_one(name: str, roberta: str) -> None:
    published = TABLES["published_parameters"][name]
    request = ModelRequest(name, published["num_classes"], 3)
    if published["source"] == "transformers":
        request = ModelRequest(roberta, published["num_classes"], kind="text")
    with torch.device("meta"):
        model = build_model(published["source"], request, seed=0)
    num = sum(parameter.numel() for parameter in model.parameters())
    assert round(num / 1e6, 1) == published["millions"]
    assert has_batch_norm(model) == (name in WITH_BATCH_NORM)
    used = {(config.model.name, config.model.source) for config in map(load, CELLS)}
    assert (name, published["source"]) in used


@pytest.mark.part("recipes")
@pytest.mark.parametrize("cell", [*TINY, "glue_cola"])
def test_one_step_of_the_whole_model(cell: str, roberta: str) -> None:
    size, arguments = TINY.get(cell, (0, {}))
    overrides = ["batch.size=4", "objective.micro_batches=2", "model.pretrained=false"]
    if load(f"{cell}_msam").batch.norm_samples is not None:
        overrides.append("batch.norm_samples=2")
    overrides += [f"model.args.{key}={value}" for key, value in arguments.items()]
    config = load_config(FOLDER / f"{cell}_msam.yaml", overrides=overrides, world_size=1)
    generator = torch.Generator().manual_seed(0)
    if size:
        images, labels = torch.randn(4, 3, size, size, generator=generator), torch.arange(4)
        request = ModelRequest(str(config.model.name), 10, 3, arguments=config.model.args)
        batch: Any = images, labels
    else:
        tokens = torch.randint(2, 50265, (4, 8), generator=generator)
        request = ModelRequest(roberta, 2, kind="text")
        batch = {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "labels": torch.tensor([0, 1, 1, 0]),
        }
    model = build_model(config.model.source, request, seed=0)
    engine = initialize(model, config=config, num_steps=num_steps_of(f"{cell}_msam"))
    before = [p.detach().flatten()[:100].clone() for p in model.parameters()]
    step = engine.train_step(batch)
    assert not step.skipped
    assert 0 < step.loss < 100
    assert step.ascent_norm > 0
    assert step.grad_norm > 0
    after = [p.detach().flatten()[:100] for p in model.parameters()]
    num_moved = sum(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert num_moved > 0.9 * len(after)


def test_the_cifar_resnet_is_torchvisions_with_another_stem() -> None:
    request = ModelRequest("cifar_resnet50", 10, 3)
    model = build_model("msam_scale", request, seed=0).eval()
    other = resnet50(num_classes=10)
    other.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    other.maxpool = nn.Identity()
    other.load_state_dict(model.state_dict())
    assert all(bool((block.bn3.weight == 1).all()) for block in model.get_submodule("layer1"))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images), other.eval()(images))
        assert model.get_submodule("layer4")(torch.zeros(1, 1024, 8, 8)).shape[2:] == (4, 4)


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_recipes", FOLDER / "write_recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for it
    spec.loader.exec_module(module)
    return module
