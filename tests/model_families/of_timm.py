"""One small member of each family (module) of timm."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import timm
import torch
from timm.models.mvitv2 import MultiScaleVitCfg
from timm.models.res2net import Bottle2neck
from timm.models.resnest import ResNestBottleneck
from timm.models.senet import SEResNetBlock
from timm.models.sknet import SelectiveKernelBasic
from torch import nn

from tests.model_families.family import BATCH_SIZE, NUM_CLASSES, WHOLE, Family

_VIT: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "depth": 2,
    "embed_dim": 24,
    "num_heads": 2,
}
_RATES = ({"drop_rate": 0.1, "drop_path_rate": 0.1}, {"drop_rate": 0.1}, {})
_IMAGE_SIZE = 64

_ONCE = (1, 1, 1, 1)
_WIDTHS = (8, 16, 24, 32)
_RESNET_WIDTHS = (16, 32, 32, 64)

# By timm's module: a model or a class of the module, and arguments that make it small; `_RATES` are
# tried, too. `size` is that of the images, where the model is not told it by `img_size`.
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", _VIT),
    "byoanet": ("eca_botnext26ts_256", {"img_size": 64}),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", _VIT),
    "coat": (
        "CoaT",
        {"img_size": 64, "patch_size": 4, "embed_dims": (16,) * 4, "serial_depths": _ONCE}
        | {"parallel_depth": 1},
    ),
    "convit": ("convit_tiny", _VIT | {"depth": 3, "local_up_to_layer": 2}),
    "convmixer": ("ConvMixer", {"dim": 24, "depth": 2, "size": 28}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {"img_size": 240, "depth": [[1, 1, 0]]}),
    "csatv2": (
        "CSATv2",
        {"dims": (16, 24, 32, 48), "depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)},
    ),
    "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}),
    "davit": ("davit_tiny", {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 2)}),
    "deepseek_vit": ("deepseek_vit_412m", _VIT),
    "deit": ("deit_tiny_distilled_patch16_224", _VIT),
    "densenet": (
        "DenseNet",
        {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    ),
    "dla": ("dla46x_c", {}),
    "dpn": (
        "DPN",
        {"k_sec": _ONCE, "inc_sec": (8,) * 4, "k_r": 16, "groups": 4, "num_init_features": 16}
        | {"small": True},
    ),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": (
        "EfficientFormer",
        {"depths": (1, 1, 1, 2), "embed_dims": _WIDTHS, "num_vit": 1, "size": 224},
    ),
    "efficientformer_v2": ("efficientformerv2_s0", {"img_size": 64}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": (
        "EfficientViM",
        {"embed_dim": (16, 24, 32), "depths": (1, 1, 1), "state_dim": (9, 9, 4), "size": 128},
    ),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": (
        "EfficientVitMsra",
        {"img_size": 128, "embed_dim": (16, 24, 32), "key_dim": (4,) * 3, "depth": (1,) * 3}
        | {"num_heads": (2,) * 3},
    ),
    "eva": ("eva02_tiny_patch14_224", _VIT),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("FastVit", {"layers": _ONCE, "embed_dims": (8, 16, 32, 64)}),
    "focalnet": ("FocalNet", {"depths": (1, 1), "embed_dim": 16}),
    "gcvit": (
        "GlobalContextVit",
        {"img_size": 64, "depths": _ONCE, "embed_dim": 16, "num_heads": (2,) * 4},
    ),
    "gemma4_vit": (
        "Gemma4VitClassifier",
        _VIT | {"head_dim": 12, "intermediate_size": 32, "position_embedding_size": 64},
    ),
    "ghostnet": ("ghostnet_050", {}),
    "hardcorenas": ("hardcorenas_a", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("Hiera", {"img_size": (64, 64), "size": 64, "embed_dim": 16, "stages": _ONCE}),
    "hieradet_sam2": (
        "HieraDet",
        {"embed_dim": 16, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
    ),
    "hrnet": ("hrnet_w18_small", {}),
    "iformer": ("iformer_t", {}),
    "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {"size": 96}),
    "inception_v3": ("inception_v3", {"size": 128}),
    "lcnetv2": ("lcnetv2_small", {}),
    "levit": (
        "Levit",
        {"img_size": 64, "embed_dim": (16, 24), "key_dim": 8, "depth": (1, 1), "num_heads": (2, 2)},
    ),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {"img_size": 64}),
    "metaformer": ("MetaFormer", {"depths": _ONCE, "dims": _WIDTHS}),
    "mlp_mixer": (
        "MlpMixer",
        {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 24},
    ),
    "mobilenetv3": ("lcnet_035", {}),
    "mobilenetv5": ("mobilenetv5_base", {"channel_multiplier": 0.125}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": (
        "MultiScaleVit",
        {
            "cfg": MultiScaleVitCfg(depths=(1, 1), embed_dim=16, num_heads=1),
            "img_size": (64, 64),
            "size": 64,
        },
    ),
    "naflexvit": (
        "NaFlexVit",
        {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2, "size": 32},
    ),
    "nest": (
        "Nest",
        {"img_size": 64, "embed_dims": (16, 32, 64), "num_heads": (2,) * 3, "depths": (1,) * 3},
    ),
    "nextvit": ("NextViT", {"in_chans": 3, "stem_chs": (8, 8, 8), "depths": (1, 1, 5, 1)}),
    "nfnet": ("test_nfnet", {}),
    "pit": (
        "PoolingVisionTransformer",
        {"img_size": 64, "base_dims": (8,) * 3, "depth": (1,) * 3, "heads": (2,) * 3},
    ),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("Qwen3VitClassifier", _VIT | {"pos_embed_grid_size": 4}),
    "rdnet": ("RDNet", {"growth_rates": (8,) * 7, "num_blocks_list": (1,) * 7}),
    "regnet": ("regnetx_002", {}),
    "repghost": ("repghostnet_050", {}),
    "repvit": (
        "RepVit",
        {"img_size": 64, "embed_dim": (16, 24), "depth": (1, 1), "distillation": False},
    ),
    "res2net": (
        "ResNet",
        {"block": Bottle2neck, "layers": _ONCE, "base_width": 8, "block_args": {"scale": 4}}
        | {"channels": _RESNET_WIDTHS},
    ),
    "resnest": (
        "ResNet",
        {"block": ResNestBottleneck, "layers": _ONCE, "stem_type": "deep", "stem_width": 8}
        | {"channels": _RESNET_WIDTHS},
    ),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {}),
    "rexnet": ("RexNet", {"width_mult": 0.5, "depth_mult": 0.5, "size": 128}),
    "selecsls": ("selecsls42", {"size": 128}),
    "senet": ("SENet", {"block": SEResNetBlock, "layers": _ONCE, "groups": 1, "reduction": 16}),
    "sequencer": (
        "Sequencer2d",
        {"img_size": 56, "layers": _ONCE, "patch_sizes": (7, 2, 1, 1), "embed_dims": (16,) * 4}
        | {"hidden_sizes": (8,) * 4},
    ),
    "shvit": (
        "SHViT",
        {"embed_dim": (16, 24, 32), "partial_dim": (8,) * 3, "qk_dim": (4,) * 3}
        | {"depth": (1,) * 3, "size": 128},
    ),
    "sknet": (
        "ResNet",
        {"block": SelectiveKernelBasic, "layers": _ONCE, "channels": _RESNET_WIDTHS},
    ),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "depths": (1, 2), "num_heads": (2, 4), "embed_dim": 16},
    ),
    "swin_transformer_v2": (
        "swinv2_tiny_window8_256",
        {"img_size": 64, "depths": (1, 2), "num_heads": (2, 4), "embed_dim": 16},
    ),
    "swin_transformer_v2_cr": (
        "swinv2_cr_tiny_224",
        {"img_size": 56, "depths": (1, 2), "num_heads": (2, 4), "embed_dim": 16},
    ),
    "tiny_vit": (
        "TinyVit",
        {"embed_dims": (16, 16, 32, 32), "depths": _ONCE, "num_heads": (2,) * 4},
    ),
    "tnt": ("tnt_s_patch16_224", {"img_size": 32, "depth": 2}),
    "tresnet": ("TResNet", {"layers": _ONCE, "width_factor": 0.25}),
    "twins": (
        "Twins",
        {"img_size": 64, "embed_dims": (16, 16, 32, 32), "num_heads": (1, 2, 2, 2)}
        | {"depths": _ONCE, "wss": (4,) * 4},
    ),
    "vgg": (
        "VGG",
        {"cfg": (8, "M", 16, "M", 16, "M"), "mlp_ratio": 1 / 256, "norm_layer": nn.BatchNorm2d},
    ),
    "visformer": ("visformer_tiny", {"img_size": 64}),
    "vision_transformer": ("test_vit", {"img_size": 32}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 2}),
    "vision_transformer_relpos": ("test_vit_relpos", {"img_size": 32}),
    "vision_transformer_sam": ("samvit_base_patch16_224", _VIT),
    "volo": (
        "VOLO",
        {"layers": _ONCE, "img_size": 64, "embed_dims": (16, 32, 32, 32), "num_heads": (2,) * 4}
        | {"use_aux_head": False, "stem_hidden_dim": 16},
    ),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("legacy_xception", {}),
    "xception_aligned": (
        "XceptionAligned",
        {
            "block_cfg": [
                {"in_chs": 64, "out_chs": 64, "stride": 2},
                {"in_chs": 64, "out_chs": 64, "stride": 1},
                {"in_chs": 64, "out_chs": (64, 64, 64), "stride": 1}
                | {"no_skip": True, "start_with_relu": False},
            ]
        },
    ),
    "xcit": ("xcit_nano_12_p16_224", _VIT),
}


_UNSPLIT = ("levit",)


def _build(module: str, model: str, arguments: dict[str, Any]) -> nn.Module:
    create = getattr(import_module(f"timm.models.{module}"), model, None)
    if not isinstance(create, type):
        create = partial(timm.create_model, model)
    for rates in _RATES:
        try:
            return create(num_classes=NUM_CLASSES, **rates, **arguments)  # type: ignore[no-any-return]
        except TypeError as error:  # no such argument
            reason = error
    raise reason


def _images(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(BATCH_SIZE, 3, size, size, generator=generator, dtype=torch.float64)
    return images, torch.randint(NUM_CLASSES, (BATCH_SIZE,), generator=generator)


def families() -> list[Family]:
    """By timm's names of its modules."""
    found = []
    for name, (model, given) in _MODELS.items():
        arguments = dict(given)
        size = arguments.pop("size", arguments.get("img_size", _IMAGE_SIZE))
        found.append(
            Family(
                library="timm",
                name=name,
                model=model,
                build=partial(_build, name, model, arguments),
                batch=partial(_images, size),
                weight=lambda batch: len(batch[1]),
                chunk=WHOLE if name in _UNSPLIT else 2,
            )
        )
    return found
