"""Families of models of others, each a small one: the engine's step is the plain reference's."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from tests.model_families import all_families, table
from tests.model_families.compared import compare

FAMILIES = all_families()
QUICK = (
    "timm-beit",
    "timm-convit",
    "timm-convnext",
    "timm-resnet",
    "timm-vision_transformer",
    "transformers-albert",
    "transformers-bert",
    "transformers-bloom",
    "transformers-clip",
    "transformers-falcon",
    "transformers-gpt2",
    "transformers-llama",
    "transformers-mistral",
    "transformers-resnet",
    "transformers-t5",
    "transformers-wav2vec2",
    "transformers-whisper",
    "transformers-xlnet",
)
pytestmark = pytest.mark.filterwarnings("ignore")  # of timm's and transformers' own code


def _check(name: str) -> None:
    result = compare(FAMILIES[name])
    assert result.is_exact, table.row(FAMILIES[name], result)


@pytest.mark.parametrize("name", QUICK)
def test_a_family_is_trained_exactly(name: str) -> None:
    _check(name)


@pytest.mark.part("models")
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - set(QUICK)))
def test_another_family_is_trained_exactly(name: str) -> None:
    _check(name)


def test_the_table_has_every_family() -> None:
    page = Path(__file__).parents[1] / "docs" / "models.md"
    assert table.rows_in(page).keys() == FAMILIES.keys()
    assert page.read_text("utf-8") == table.document(table.rows_in(page))


def test_every_module_of_timm_is_there() -> None:
    ours = {family.name for family in FAMILIES.values() if family.library == "timm"}
    # Their smallest models take long, or their batch norms amplify rounding beyond the bound.
    left_out = {"inception_v4", "nasnet", "pnasnet", "vitamin"}
    assert ours | left_out == set(timm.list_modules())
