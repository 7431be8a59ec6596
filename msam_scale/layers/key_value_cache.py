"""Keys and values that language models keep for the next token, of which training has no use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class KeyValueCaches:
    """Turns `use_cache` off in the configs of a model's parts, as transformers' own trainer does.

    It is on by default in transformers' decoders. A block that is computed again for its gradients
    would then find its own keys and values of before, and add to them. A `use_cache` that the call
    itself says goes before the config's.

    Args:
        model: of any kind; only parts with a config of transformers have a cache.
    """

    def __init__(self, model: nn.Module) -> None:
        self._configs = []
        if (transformers := sys.modules.get("transformers")) is not None:
            configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None))}
            self._configs = [
                config
                for config in configs.values()
                if isinstance(config, transformers.PretrainedConfig)
            ]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, no part fills a cache unless it is called with `use_cache=True`."""
        on = [config for config in self._configs if getattr(config, "use_cache", False)]
        try:
            for config in on:
                config.use_cache = False
            yield
        finally:
            for config in on:
                config.use_cache = True
