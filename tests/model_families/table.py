"""The table of models in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import timm
import torch
import transformers

from tests.model_families.compared import BOUND, Result
from tests.model_families.family import Family

_HEADER = """\
| family | model | parameters | blocks | without | with | masks |
| --- | --- | --- | --- | --- | --- | --- |
"""


def row(family: Family, result: Result) -> str:
    """A line of the table."""
    cells = [
        f"{family.library} {family.name}",
        f"`{family.model}`",
        f"{result.num_parameters:,}",
        str(result.num_blocks),
        _number(result.plain),
        _number(result.checkpointed) if result.num_blocks else "–",
        "sample" if result.by_sample else "slice",
    ]
    if result.refusal is not None:
        cells[4:] = [f"refused: {result.refusal}", "–", "–"]
    return f"| {' | '.join(cells)} |"


def _number(difference: float) -> str:
    return f"{difference:.0e}" if difference < BOUND else f"**{difference:.0e}**"


def rows_in(path: Path) -> dict[str, str]:
    """The rows of a table that was written before, by the families' ids."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    found = (re.match(r"\| (timm|transformers) (\S+) \|", line) for line in lines)
    return {
        f"{match[1]}-{match[2]}": line
        for match, line in zip(found, lines, strict=True)
        if match is not None
    }


def document(rows: dict[str, str]) -> str:
    """The whole page."""
    differences = [
        float(number)
        for line in rows.values()
        for number in re.findall(r"\| \**(\de[-+]\d+)\** ", line)
    ]
    inexact = sum("**" in line for line in rows.values())
    refused = sum("refused:" in line for line in rows.values())
    versions = f"torch {torch.__version__.partition('+')[0]}, timm {timm.__version__}, "
    versions += f"transformers {transformers.__version__}"
    exact = [number for number in differences if number < BOUND]
    summary = (
        f"{len(rows)} families with {versions}: {len(rows) - inexact - refused} exact, "
        f"{inexact} not, {refused} refused. The largest difference of an exact one is "
        f"{max(exact, default=0.0):.0e}."
    )
    parts = []
    for library in ("timm", "transformers"):
        lines = [rows[name] for name in sorted(rows) if name.startswith(f"{library}-")]
        parts.append(f"## {library}\n\n{_HEADER}" + "".join(f"{line}\n" for line in lines))
    return _INTRODUCTION.format(summary=summary) + "\n" + "\n".join(parts)


_INTRODUCTION = """\
# Models: which run exactly

{summary}

A small model of each family is trained with mSAM in float64, for two steps where it has less than
half a million parameters and for one otherwise: 8 samples, 2 micro-batches, chunks of 2 samples,
ρ = 0.05, with dropout and stochastic depth where the family has them. Batches of text are padded,
with attention masks and labels of -100, and models of transformers compute their own loss. CLIP and
SigLIP, whose loss compares samples, and LeViT, whose batch norms see one vector a sample, do one
step with chunks of a whole micro-batch. Weights and running statistics are compared with those of
the mSAM that `tests/reference.py` writes out in plain PyTorch.

- **without** and **with** activation checkpointing: ‖engine - reference‖ / ‖reference - start‖.
  Bold is more than 1e-9.
- **blocks** are computed again with `training.activation_checkpointing`; a dash says that the
  model has none, so that it changes nothing.
- **masks** are keyed by sample: the reference runs whole micro-batches, and the engine's chunks
  give the same. Or some are keyed by slice (dropout in fused attention or by a function,
  SpecAugment), and the reference runs the same chunks; such a model's result depends on
  `batch.chunk` and on the ranks.

Left out: timm's inception_v4, nasnet, pnasnet and vitamin, whose smallest models take long or have
batch norms that amplify rounding beyond 1e-9 at the sizes used here, and models that cannot compute
in float64 (XGLM).

Where a model asks for float32 inside (norms, softmax, the loss), it gets float64 here, since
otherwise its rounding is all that one would see. `python -m tests.model_families --write
docs/models.md` writes this page; `make test-all PARTS=models` checks all of it, `make test` a part.
"""
