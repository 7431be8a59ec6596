"""Small models of the families of timm and transformers: does the engine train them exactly?

`python -m tests.model_families --write docs/models.md` writes the table of the documentation.
"""

from tests.model_families import of_timm, of_transformers
from tests.model_families.family import Family


def all_families() -> dict[str, Family]:
    """By their ids."""
    return {family.id: family for family in [*of_timm.families(), *of_transformers.families()]}
