"""Sequence classifiers of transformers by name or folder, freshly initialised or pretrained."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from msam_scale.models.keyed_attention import KEYED_ATTENTION, register_keyed_attention
from msam_scale.models.request import ModelRequest
from msam_scale.models.weights import (
    explained_misfit,
    first_lines,
    load_weights,
    num_outputs,
    saved_weights,
    weight_shapes,
)

_logger = logging.getLogger("msam_scale")

# What from_pretrained takes and the config has a key of its own for, or refuses.
_KEYS = {
    "num_labels": "the number of classes comes from the data; leave it out",
    "id2label": "the number of classes comes from the data; leave it out",
    "label2id": "the number of classes comes from the data; leave it out",
    "return_dict": "is always true; leave it out",
    "cache_dir": "the environment variable HF_HOME does that",
    "token": "the environment variable HF_TOKEN does that",
    "local_files_only": "the environment variable HF_HUB_OFFLINE does that",
    "force_download": "leave it out",
    "proxies": "the environment variable HTTPS_PROXY does that",
    "code_revision": "code of a model from elsewhere is not run; leave it out",
    "dtype": "set precision instead",
    "torch_dtype": "set precision instead",
    "device_map": "set sharding.strategy instead",
    "trust_remote_code": "code of a model from elsewhere is not run; leave it out",
    "use_safetensors": "weights are always read from safetensors, never unpickled; leave it out",
}
# What makes a head, by the names that transformers gives it.
_HEADS = ("classifier", "score", "pre_classifier", "pooler", "classification_head")
# Heads of other tasks and buffers of indices, which weights bring along as a matter of course.
_LEFT_BEHIND = (*_HEADS, "cls.", "lm_head.", "position_ids")
_ATTENTION = "attn_implementation"
# Which version of a repository; of the settings and of the weights alike.
_VERSION = ("revision", "subfolder")


def check_transformers_name(name: str) -> None:
    """Accepts every name: only the hub, or the folder of that name, knows whether there is one."""


def build_transformers_model(request: ModelRequest) -> nn.Module:
    """`AutoModelForSequenceClassification` with the data's classes.

    Its attention is `keyed_attention`, unless `model.args.attn_implementation` names another.

    Raises:
        UserError: there is no such model, or its weights cannot be had or do not fit.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification  # takes seconds

    arguments = dict(request.arguments)
    for argument in _KEYS.keys() & arguments.keys():
        raise UserError(f"model.args: {argument}: {_KEYS[argument]}")
    attention = arguments.pop(_ATTENTION, None)
    version = {key: arguments.pop(key) for key in _VERSION if key in arguments}
    register_keyed_attention()
    with _explained(request.name):
        if request.settings is None:
            settings, unused = AutoConfig.from_pretrained(
                request.name,
                return_unused_kwargs=True,
                num_labels=request.num_classes,
                trust_remote_code=False,
                **version,
                **arguments,
            )
        else:
            kept = dict(request.settings)
            settings, unused = AutoConfig.for_model(kept.pop("model_type"), **kept), {}
    for implementation in (attention, getattr(settings, f"_{_ATTENTION}", None)):
        _check_no_kernel(implementation)
    unknown = sorted(key for key in arguments if key in unused)
    if unknown:
        raise UserError(
            f"model.args: {', '.join(unknown)}: {type(settings).__name__} has no such setting; "
            "its attributes work, such as hidden_dropout_prob of BERT and RoBERTa"
        )
    with _explained(request.name), _quiet():
        model_class: Any = AutoModelForSequenceClassification
        if request.pretrained:
            model, found = model_class.from_pretrained(
                request.name,
                config=settings,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                **version,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            request.anew.extend(_anew(model, found, name=request.name))
        else:
            model = model_class.from_config(settings, dtype=torch.float32, trust_remote_code=False)
    assert isinstance(model, nn.Module)
    _set_attention(model, attention)
    if (path := request.weights) is not None:
        heads = [name for name in _HEADS if hasattr(model, name)]
        num_classes = num_outputs(weight_shapes(path), heads=list(_outputs(model, heads)))
        with explained_misfit(path, name=request.name):
            weights = saved_weights(path)
            request.anew.extend(load_weights(model, weights, heads=heads, num_classes=num_classes))
    return model


def _check_no_kernel(attention: Any) -> None:
    """Refuses OWNER/NAME, in a config or a folder's config.json: compiled code from the hub."""
    if "/" in str(attention):
        raise UserError(
            f"model.args: {_ATTENTION}: {attention!r} is a kernel of the hub, and code from "
            "elsewhere is not run; leave it out, or name one of transformers' own, such as sdpa"
        )


def _outputs(model: nn.Module, heads: list[str]) -> Iterator[str]:
    """The last linear layer of a head: `classifier`, or `classifier.out_proj` of RoBERTa."""
    for head in heads:
        linear = [
            name
            for name, module in model.get_submodule(head).named_modules(prefix=head)
            if isinstance(module, nn.Linear)
        ]
        yield from linear[-1:]


def _set_attention(model: Any, attention: Any) -> None:
    if attention is not None:
        try:
            model.set_attn_implementation(attention)
        except (ValueError, ImportError, KeyError, TypeError) as error:
            raise UserError(
                f"model.args: {_ATTENTION}: {attention!r} does not work: {first_lines(error)}; "
                "left out, attention dropout does not depend on the layout"
            ) from error
    elif getattr(model, "_supports_attention_backend", False):
        model.set_attn_implementation(KEYED_ATTENTION)


def _anew(model: Any, found: Mapping[str, Any], *, name: str) -> list[str]:
    """The layers at their initial values; refuses weights that leave a part of the body there."""
    body = f"{model.base_model_prefix}."
    missing = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    lacking = [key for key in missing if key.startswith(body) and ".pooler." not in key]
    if lacking:
        raise UserError(
            f"model.pretrained: the weights of {name} lack {len(lacking)} tensors of "
            f"{type(model).__name__} ({', '.join(lacking[:3])}, …); fewer model.args work"
        )
    unused = sorted(
        key for key in found["unexpected_keys"] if not any(part in key for part in _LEFT_BEHIND)
    )
    if unused:
        _logger.warning(
            "%d tensors among the weights of %s have no place in the model and are not used: %s, …",
            len(unused),
            name,
            ", ".join(unused[:3]),
        )
    return list(dict.fromkeys(key.rpartition(".")[0] for key in missing))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from reporting, on every rank, that a head is new."""
    from transformers.utils import logging as transformers_logging

    library: Any = transformers_logging
    verbosity, shows_progress = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if shows_progress:
            library.enable_progress_bar()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what transformers raises about a name, or settings of others, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # anything: a torch_dtype that is none is an AttributeError
        where = "" if Path(name).is_dir() else "; the path of a folder with config.json works, too"
        raise UserError(
            f"model.name: {name!r} cannot be loaded as a sequence classifier: "
            f"{first_lines(error)}{where}"
        ) from error
