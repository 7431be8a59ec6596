"""Fine-tuning on text: what a run writes, and that layout, padding and restarts do not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import LAYOUTS
from rank_pool import OnRanks
from saved_state import checkpoint_weights
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from text_data import mini_lm, write_sentences, write_tiny_bert
from transformers import DistilBertConfig

from data_pipelines import EvaluationLoader, UserError, prepare
from launch.cli import main
from msam_scale import initialize
from msam_scale.config import ConfigError
from msam_scale.ranks import join
from msam_scale.training.data import training_loader
from msam_scale.training.evaluation import Evaluator
from msam_scale.training.metrics import CLASSIFICATION_METRICS, AnswerCounts, check_metrics
from msam_scale.training.prepare import PreparedRun, prepare_run

_CONFIG = """
model: {source: transformers, name: MODEL}
data: {train: DATA/train, val: DATA/val}
objective: {algorithm: msam, micro_batches: 4, rho: 0.05}
batch: {size: 16}
optimizer: {name: adamw, lr: 5.0e-3, weight_decay: 0.01, args: {eps: 1.0e-5}}
schedule: {name: one_cycle, warmup: 0.06}
training: {steps: 8, eval_every: 4, metrics: [accuracy, f1, matthews_correlation]}
monitor: {every: 2, progress: false}
"""


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 sentences of two classes, a fifth of them for validation."""
    folder = tmp_path_factory.mktemp("sentences")
    write_sentences(folder / "train.csv", num_each=160)
    return prepare(
        "table",
        out=folder / "data",
        source=folder / "train.csv",
        tokenizer=str(mini_lm()),
        max_length=32,
        text_columns=("text",),
        label_column="label",
        val_fraction=0.2,
    ).directory


@pytest.fixture
def config(tmp_path: Path, sentences: Path) -> str:
    """A config file with a tiny BERT that drops a tenth, as BERT does."""
    write_tiny_bert(tmp_path / "bert")
    path = tmp_path / "texts.yaml"
    path.write_text(
        _CONFIG.replace("MODEL", str(tmp_path / "bert")).replace("DATA", str(sentences))
    )
    return str(path)


def lines(run: str, split: str) -> list[dict[str, Any]]:
    text = Path("runs", run, "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["split"] == split]


def weights(run: str, *, step: int) -> dict[str, torch.Tensor]:
    return checkpoint_weights(f"runs/{run}/checkpoints/step-{step:08d}")


def test_a_run_reports_the_metrics(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("training.steps=48", "training.eval_every=24", "monitor.progress=true")
    assert main(["train", config, *words]) == 0
    output = capsys.readouterr()
    assert "matthews correlation" in output.out
    validations = lines("texts", "val")
    live = [line for line in output.err.splitlines() if "  val  " in line]
    for line, found in zip(live, validations, strict=True):
        for name in ("loss", "accuracy", "f1", "matthews_correlation"):
            assert f"  {name} {found[name]:.4g}" in line
    assert [line["step"] for line in validations] == [24, 48]
    assert validations[-1]["samples"] == 64
    # Words tell numpy's sentences from torch's within three epochs.
    assert validations[-1]["accuracy"] > 0.6
    assert {"f1", "matthews_correlation"} <= validations[-1].keys()
    assert all(0 < line["mfu"] < 2 for line in lines("texts", "train") if "mfu" in line)
    assert main(["sharpness", "runs/texts", "--samples", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["eigenvalues"][0] > 0


def test_a_resumed_run_is_the_same_run(config: str) -> None:
    assert main(["train", config, "run.name=whole", "data.workers=1"]) == 0
    for stop in (3, 8):
        # The schedule is over the whole run; the first start is stopped after three steps.
        extra = ["checkpoint.every=3", "checkpoint.keep=9"]
        assert main(["train", config, "run.name=parts", *extra]) == 0
        if stop == 3:
            _go_back("parts", step=3)
    for name, tensor in weights("whole", step=8).items():
        assert torch.equal(tensor, weights("parts", step=8)[name])
    assert lines("parts", "val") == lines("whole", "val")


def _go_back(run: str, *, step: int) -> None:
    """Leaves of a run what was there when it had done so many steps."""
    checkpoints = Path("runs", run, "checkpoints")
    kept = f"step-{step:08d}"
    for folder in checkpoints.glob("step-*"):
        if folder.name != kept:
            folder.rename(folder.with_name(f"gone-{folder.name}"))
    (checkpoints / "latest").write_text(f"{kept}\n")


def trained(config: str, overrides: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], Any]:
    """Weights and evaluation after a run's steps on this rank."""
    ranks = join()
    prepared = prepare_run(config, overrides=overrides, world_size=ranks.size)
    engine = initialize(
        prepared.model,
        config=prepared.config,
        loss_fn=_loss_of(prepared),
        num_steps=prepared.num_steps,
    )
    loader = training_loader(
        prepared.data,
        prepared.config,
        plan=engine.plan,
        rank=ranks.rank,
        steps=range(prepared.num_steps),
        state=None,
    )
    batches = iter(loader)
    for _ in range(prepared.num_steps):
        engine.train_step(batches)
    evaluation = Evaluator(engine, prepared.data).evaluate()
    state = engine.full_state_dict()
    return state if ranks.is_first else {}, evaluation


def _loss_of(prepared: PreparedRun) -> Any:
    dtype = torch.float64 if prepared.config.precision == "float64" else torch.float32
    return prepared.data.task.loss_fn(
        dtype=dtype, label_smoothing=prepared.config.training.label_smoothing
    )


def _distance(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    names = [name for name in expected if name in state and expected[name].is_floating_point()]
    error = sum(float((state[n].double() - expected[n].double()).square().sum()) for n in names)
    return error**0.5


# DeepSpeed's float32 may round elsewhere than a single process does, and not much worse.
_TIMES_SINGLE_PROCESS, _FLOOR = 20.0, 1e-6
_DOUBLE = ("precision=float64",)


@pytest.mark.layouts
def test_layouts_and_chunks_do_not_matter(config: str, on_ranks: OnRanks) -> None:
    common = ("training.label_smoothing=0.1",)
    expected, evaluation = trained(config, (*common, *_DOUBLE))
    for size, overrides in (
        (1, ("batch.chunk=3",)),
        (2, ("batch.chunk=1",)),
        (2, ("sharding.strategy=fsdp",)),
    ):
        found = on_ranks(size, trained, config, (*common, *_DOUBLE, *overrides))
        assert _distance(found[0][0], expected) < 1e-10
        for _, other in found:
            assert other.metrics == evaluation.metrics
            assert other.loss == pytest.approx(evaluation.loss, rel=1e-10)
    other, _ = trained(config, (*common, *_DOUBLE, "run.seed=1"))
    assert _distance(other, expected) > 1e-2
    single, _ = trained(config, common)
    bound = max(_FLOOR, _TIMES_SINGLE_PROCESS * _distance(single, expected))
    ((found_by_zero, _), _) = on_ranks(2, trained, config, (*common, "sharding.strategy=zero3"))
    assert _distance(found_by_zero, expected) < bound


_MINI_LM = (
    f"model.name={mini_lm()}",
    "model.pretrained=true",
    "training.steps=2",
    "optimizer.lr=1e-4",
    "batch.size=8",
)
_ALGORITHMS = {
    "vanilla": ("objective.algorithm=vanilla", "objective.rho=0.05"),
    "sam": ("objective.algorithm=sam", "objective.micro_batches=null"),
    "msam": ("objective.micro_batches=4",),
}


@pytest.fixture(scope="module")
def mini_lm_alone() -> dict[str, Any]:
    """By algorithm: what one rank made of MiniLM in float64."""
    return {}


@pytest.mark.part("trajectories")
@pytest.mark.layouts
@pytest.mark.parametrize(
    ("algorithm", "row"),
    [
        *(("msam", row) for row in ("replicated", "ZeRO-3")),
        ("vanilla", "FSDP"),
        ("sam", "ZeRO-2"),
    ],
)
def test_mini_lm_follows_one_trajectory(
    algorithm: str, row: str, config: str, on_ranks: OnRanks, mini_lm_alone: dict[str, Any]
) -> None:
    expected, evaluation = _alone(algorithm, config, mini_lm_alone)
    words = (*_MINI_LM, *_ALGORITHMS[algorithm])
    layout = LAYOUTS[row]
    bound = 1e-9
    if layout.precision == "float32":
        single, _ = trained(config, words)
        bound = max(_FLOOR, _TIMES_SINGLE_PROCESS * _distance(single, expected))
    sharding = tuple(f"sharding.{key}={value}" for key, value in layout.sharding.items())
    words = (*words, *sharding, f"precision={layout.precision}")
    found, other = on_ranks(2, trained, config, words)[0]
    assert _distance(found, expected) < bound
    assert other.loss == pytest.approx(evaluation.loss, rel=1e-4)


def _alone(algorithm: str, config: str, found: dict[str, Any]) -> tuple[Any, Any]:
    if algorithm not in found:
        found[algorithm] = trained(config, (*_MINI_LM, *_ALGORITHMS[algorithm], *_DOUBLE))
    weights, evaluation = found[algorithm]
    return weights, evaluation


def test_a_pretrained_body_has_a_classifier_that_starts_anew(config: str) -> None:
    prepared = prepare_run(config, overrides=[*_MINI_LM, "objective.micro_batches=4"], world_size=1)
    assert prepared.anew == ("classifier",)


@pytest.mark.part("trajectories")
def test_algorithms_differ(config: str, mini_lm_alone: dict[str, Any]) -> None:
    states = {name: _alone(name, config, mini_lm_alone)[0] for name in _ALGORITHMS}
    assert _distance(states["sam"], states["msam"]) > 1e-3
    assert _distance(states["sam"], states["vanilla"]) > 1e-3


def test_metrics_are_scikit_learns(config: str) -> None:
    prepared = prepare_run(config, world_size=1)
    engine = initialize(prepared.model, config=prepared.config, num_steps=8)
    found = Evaluator(engine, prepared.data).evaluate()
    assert prepared.data.val is not None
    loader = EvaluationLoader(
        prepared.data.val.index,
        batch_size=7,
        rank=0,
        num_ranks=1,
        transform=None,
        num_workers=0,
    )
    engine.eval()
    labels, predictions = [], []
    for batch in loader:
        labels += batch.pop("labels").tolist()
        predictions += engine(**batch).logits.argmax(dim=1).tolist()
    assert found.metrics == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predictions),
            "f1": f1_score(labels, predictions),
            "matthews_correlation": matthews_corrcoef(labels, predictions),
        },
        abs=1e-12,
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("model.source=timm", "model.name=vit_tiny_patch16_224"), ["model.source", "images"]),
        (("data.transform=cifar_zero:statistics=none",), ["data.transform", "for images"]),
        (("training.mixup=0.2",), ["training.mixup"]),
        (("data.resident=true",), ["data.resident"]),
        (("model.name=no/such-model",), ["model.name", "no/such-model"]),
        (("model.args={hidden_dropuot: 0.1}",), ["model.args", "hidden_dropuot"]),
        (("model.args={trust_remote_code: true}",), ["model.args", "trust_remote_code"]),
        (("model.args={id2label: {0: a, 1: b, 2: c}}",), ["model.args", "id2label"]),
        (("model.args={num_classes: 5}",), ["model.args", "num_classes: 5"]),
        (("model.args={pad_token_id: 7}",), ["pad_token_id is 7", "filled up with 0"]),
        (("model.args={vocab_size: 30000}",), ["knows 30000 tokens", "--tokenizer NAME"]),
        (("model.args={type_vocab_size: 1}",), ["one type of token"]),
        (("model.args={max_position_embeddings: 20}",), ["takes 20 tokens", "--max-length 20"]),
        (("training.metrics=[accuracy, recall]",), ["training.metrics", "recall"]),
    ],
)
def test_what_text_cannot_have_is_refused(
    words: tuple[str, ...],
    expected: list[str],
    config: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError) as caught:
        prepare_run(config, overrides=words, world_size=1)
    for part in expected:
        assert part in str(caught.value)


def test_a_model_that_does_not_take_the_tokens_is_refused(config: str, tmp_path: Path) -> None:
    DistilBertConfig(dim=16, hidden_dim=32, n_layers=1, n_heads=2).save_pretrained(tmp_path / "d")
    with pytest.raises(ConfigError, match="does not take the data's token_type_ids"):
        prepare_run(config, overrides=(f"model.name={tmp_path / 'd'}",), world_size=1)


def test_code_of_a_model_is_never_run(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither after a question that is answered with yes."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    settings = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ConfigError, match=r"model\.name"):
        prepare_run(config, overrides=(f"model.name={folder}",), world_size=1)
    assert not marker.exists()


def test_very_many_classes_have_an_accuracy() -> None:
    counts = AnswerCounts(num_classes=5000, device=torch.device("cpu"))
    logits = torch.zeros(4, 5000)
    logits[range(4), [7, 4999, 3, 0]] = 1
    counts.add(logits, torch.tensor([7, 4999, 4, 0]))
    assert CLASSIFICATION_METRICS["accuracy"](counts.answers()) == 0.75
    assert counts.counts.numel() == 4
    with pytest.raises(UserError, match="matthews_correlation is for at most 4096 classes"):
        check_metrics(["matthews_correlation"], num_classes=5000)
    with pytest.raises(AssertionError):
        AnswerCounts(num_classes=10, device=torch.device("cpu")).add(logits, torch.zeros(4).long())
