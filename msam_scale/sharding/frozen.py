"""Which parameters are frozen is settled when an engine is made."""

from __future__ import annotations

from torch import nn

from data_pipelines.errors import UserError


class FrozenParameters:
    """Remembers which parameters of a model are trained: buffers hold room for those alone.

    Args:
        model: laid out on this rank.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._trained = self._trained_now()

    def check_unchanged(self) -> None:
        """Raises a UserError where a parameter was frozen or unfrozen since."""
        if self._trained_now() != self._trained:
            raise UserError(
                "parameters were frozen or unfrozen since initialize (or added, or removed), which "
                "would have no effect; call initialize again"
            )

    def _trained_now(self) -> list[bool]:
        # Asked of the model each time: FSDP2 shows other tensors while its parameters are gathered.
        return [parameter.requires_grad for parameter in self._model.parameters()]
