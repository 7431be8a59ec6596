"""What a user probably meant by a key that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from msam_scale.config.describe import listed, property_of
from msam_scale.config.keys import all_keys, dotted, sections

# Names that the paper, timm, transformers, Lightning and DeepSpeed use for settings of ours.
_NAMES_ELSEWHERE = {
    "run.name": "experiment run_name",
    "run.dir": "default_root_dir log_dir out_dir output output_dir",
    "model.name": "arch model_name model_name_or_path",
    "model.weights": "checkpoint_path initial_checkpoint pretrained_path",
    "data.train": "data_dir dataset train_dir train_file train_split",
    "data.val": "val_dir val_split validation_file valid_dir",
    "data.transform": "aa auto_augment augmentation transforms",
    "data.workers": "dataloader_num_workers num_workers",
    "objective.micro_batches": "m micro_batch num_micro_batches",
    "batch.size": "batch_size global_batch_size train_batch_size",
    "optimizer.name": "opt optim",
    "optimizer.lr": "base_lr learning_rate max_lr",
    "optimizer.weight_decay": "wd",
    "optimizer.clip_norm": "clip_grad grad_clip gradient_clip_val gradient_clipping max_grad_norm",
    "optimizer.args": "adam_beta1 adam_beta2 adam_epsilon betas eps nesterov opt_betas opt_eps",
    "schedule.name": "lr_scheduler lr_scheduler_type sched",
    "schedule.warmup": "warmup_epochs warmup_iters warmup_ratio warmup_steps",
    "training.epochs": "max_epochs num_epochs num_train_epochs",
    "training.steps": "max_iters max_steps num_steps num_train_steps total_steps",
    "training.label_smoothing": "label_smoothing_factor smoothing",
    "training.eval_every": "eval_interval eval_steps val_check_interval",
    "training.compile": "torch_compile torchcompile",
    "training.activation_checkpointing": "grad_checkpointing gradient_checkpointing",
    "training.ema": "ema_decay model_ema model_ema_decay",
    "sharding.deepspeed": "deepspeed_config",
    "sharding.offload": "cpu_offload",
    "checkpoint.every": "save_every save_interval save_steps",
    "checkpoint.keep": "checkpoint_hist save_top_k save_total_limit",
    "checkpoint.start_from": "init_from resume_from resume_from_checkpoint",
    "monitor.every": "log_every_n_steps log_interval logging_steps steps_per_print",
}
OTHER_NAMES = {name: key for key, names in _NAMES_ELSEWHERE.items() for name in names.split()}
_WAYS_ELSEWHERE = {
    "batch.size is the mini-batch of all ranks, and batch.chunk the most samples of one forward on "
    "a rank: what does not fit is accumulated": (
        "accum_iter accumulate_grad_batches grad_accum grad_accum_steps gradient_accumulation_steps"
        " micro_batch_size per_device_train_batch_size train_micro_batch_size_per_gpu"
    ),
    "precision: bfloat16 computes in mixed precision, and float16 does with a loss scale": (
        "amp amp_dtype autocast bf16 bfloat16 dtype float16 fp16 half mixed_precision"
    ),
    "initialize takes an optimizer whose groups have rates of their own, such as that of "
    "timm.optim.create_optimizer_v2(model, layer_decay=0.75)": (
        "layer_decay layerwise_lr_decay llrd param_groups"
    ),
    "ranks are the launcher's: msam-scale train CONFIG --nproc N, or torchrun": (
        "devices gpus local_rank n_gpu num_gpus num_nodes num_processes world_size"
    ),
    "model.args takes it, and data.transform the size of the images": (
        "drop drop_path drop_rate dropout hidden_dropout_prob image_size img_size in_chans"
    ),
    "the number of classes comes from the data": "n_classes nb_classes num_classes num_labels",
}
WAYS = {name: way for way, names in _WAYS_ELSEWHERE.items() for name in names.split()}


def suggest(path: Sequence[Any]) -> list[str]:
    """The keys that an unknown one may stand for, the likeliest first.

    Args:
        path: the unknown key, from the top of the config down.

    Returns:
        Dotted keys or, for a section that does not exist, the sections with a similar name.
    """
    *parents, name = path
    if (key := OTHER_NAMES.get(_plain(name))) is not None:
        return [key]
    if way_elsewhere(name) is not None:
        return []
    elsewhere = [key for key in all_keys() if key.split(".")[-1] == name]
    # A key put into the wrong section is spelled right; anything else is a typing mistake.
    if elsewhere:
        return elsewhere
    if parents and parents[0] not in sections():
        return _closest(dotted(path), among=all_keys())
    return [dotted([*parents, match]) for match in _closest(name, among=_names_in(parents))]


def settings_meant(path: Sequence[Any]) -> frozenset[str]:
    """The settings that an unknown key certainly stands for; none where that is open."""
    meant = suggest(path)
    if len(meant) != 1:
        return frozenset()
    return frozenset([f"{meant[0]}.{name}" for name in sections().get(meant[0], ())] or meant)


def unknown_key_message(path: Sequence[Any]) -> str:
    """One line about a key that does not exist: what was probably meant, or what there is."""
    meant = suggest(path)
    if (way := way_elsewhere(path[-1])) is not None:
        return f"is not a key; {way}"
    if meant:
        return f"is not a key; did you mean {listed(meant, last='or')}?"
    parents = path[:-1]
    if parents and parents[0] not in sections():
        parents = ()
    where = dotted(parents) or "the config"
    return f"is not a key; the keys of {where} are {listed(_names_in(parents), last='and')}"


def way_elsewhere(name: Any) -> str | None:
    """How to get here what is one argument elsewhere; None for a name that is not known for it."""
    return WAYS.get(_plain(name))


def _plain(name: Any) -> str:
    return str(name).lower().replace("-", "_")


def _closest(name: str, *, among: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, among, n=1, cutoff=0.6)


def _names_in(parents: Sequence[Any]) -> list[str]:
    if not parents:
        return list(sections())
    return list((property_of(parents) or {}).get("properties", {}))
