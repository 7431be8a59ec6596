"""One small model of each of many model types of transformers, with the loss of its own forward."""

from __future__ import annotations

from functools import partial
from typing import Any

import transformers
from torch import nn

from tests.model_families.batches import NUM_LABELS, TASKS, VOCABULARY
from tests.model_families.family import WHOLE, Family

_DEFAULT: Any = object()
"""Of a config: its own value, where `_TINY` has another."""

# What makes a model tiny, by the names that configs have for it; each takes those that it knows.
_TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "num_labels": NUM_LABELS,
    "hidden_size": 16,
    "d_model": 16,
    "embedding_size": 16,
    "intermediate_size": 24,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "image_size": 32,
    "hidden_dropout_prob": 0.1,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "drop_path_rate": 0.1,
}
_T5: dict[str, Any] = {"d_kv": 8, "d_ff": 24, "num_heads": 2, "decoder_start_token_id": 1}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_SPEECH: dict[str, Any] = {
    "conv_dim": [16, 16],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_length": 2,
    "mask_time_prob": 0.2,
    "classifier_proj_size": 8,
}
_SWIN: dict[str, Any] = {
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "window_size": 4,
    "patch_size": 4,
    "hidden_size": _DEFAULT,
    "num_layers": _DEFAULT,
    "num_hidden_layers": _DEFAULT,
    "num_attention_heads": _DEFAULT,
}
_CLIP_PARTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "next token", {}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "next token",
        {
            "attention_types": [[["global", "local"], 1]],
            "num_heads": 2,
            "window_size": 4,
            "resid_dropout": 0.1,
        },
    ),
    "gptj": ("GPTJForCausalLM", "next token", {"rotary_dim": 4, "resid_pdrop": 0.1}),
    "gpt_neox": ("GPTNeoXForCausalLM", "next token", {}),
    "codegen": (
        "CodeGenForCausalLM",
        "next token",
        {"rotary_dim": 4, "n_head": 4, "resid_pdrop": 0.1},
    ),
    "opt": ("OPTForCausalLM", "next token", {"word_embed_proj_dim": 16}),
    "bloom": ("BloomForCausalLM", "next token", {}),
    "falcon": ("FalconForCausalLM", "next token", {"head_dim": _DEFAULT}),
    "llama": ("LlamaForCausalLM", "next token", {}),
    "mistral": ("MistralForCausalLM", "next token", {"sliding_window": 4}),
    "mixtral": (
        "MixtralForCausalLM",
        "next token",
        {"experts_implementation": "eager", "num_local_experts": 4},
    ),
    "qwen2": ("Qwen2ForCausalLM", "next token", {}),
    "qwen3": ("Qwen3ForCausalLM", "next token", {}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "next token",
        {
            "experts_implementation": "eager",
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "gemma": ("GemmaForCausalLM", "next token", {}),
    "gemma2": ("Gemma2ForCausalLM", "next token", {"sliding_window": 4}),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        "next token",
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
    ),
    "phi": ("PhiForCausalLM", "next token", {"resid_pdrop": 0.1}),
    "phi3": ("Phi3ForCausalLM", "next token", {"resid_pdrop": 0.1}),
    "gpt_oss": (
        "GptOssForCausalLM",
        "next token",
        {"experts_implementation": "eager", "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "olmo2": ("Olmo2ForCausalLM", "next token", {}),
    "stablelm": ("StableLmForCausalLM", "next token", {}),
    "granite": ("GraniteForCausalLM", "next token", {}),
    "cohere": ("CohereForCausalLM", "next token", {}),
    "biogpt": ("BioGptForCausalLM", "next token", {}),
    "ctrl": ("CTRLLMHeadModel", "next token", {"dff": 24}),
    "mamba": ("MambaForCausalLM", "next token", {}),
    "xlnet": (
        "XLNetLMHeadModel",
        "permuted tokens",
        {"d_head": 8, "d_inner": 24, "max_position_embeddings": _DEFAULT},
    ),
    "bert": ("BertForMaskedLM", "masked tokens", {}),
    "roberta": ("RobertaForSequenceClassification", "sentence classes", {}),
    "distilbert": (
        "DistilBertForQuestionAnswering",
        "answer spans",
        {"hidden_dim": 24, "num_labels": 2},
    ),
    "albert": ("AlbertForMaskedLM", "masked tokens", {}),
    "electra": ("ElectraForTokenClassification", "token classes", {}),
    "deberta": ("DebertaForSequenceClassification", "sentence classes", {"pooler_hidden_size": 16}),
    "deberta_v2": (
        "DebertaV2ForSequenceClassification",
        "sentence classes",
        {"pooler_hidden_size": 16},
    ),
    "mpnet": ("MPNetForMaskedLM", "masked tokens", {}),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        "sentence classes",
        {"intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    ),
    "squeezebert": ("SqueezeBertForSequenceClassification", "sentence classes", {}),
    "convbert": ("ConvBertForSequenceClassification", "sentence classes", {"conv_kernel_size": 3}),
    "roformer": ("RoFormerForMaskedLM", "masked tokens", {}),
    "fnet": ("FNetForSequenceClassification", "sentence classes", {}),
    "funnel": (
        "FunnelForSequenceClassification",
        "sentence classes",
        {
            "num_hidden_layers": _DEFAULT,
            "block_sizes": [1, 1],
            "d_head": 8,
            "n_head": 2,
            "d_inner": 24,
        },
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        "masked tokens",
        {"mlp_dropout": 0.1, "embedding_dropout": 0.1},
    ),
    "longformer": (
        "LongformerForSequenceClassification",
        "sentence classes",
        {"attention_window": 4},
    ),
    "t5": ("T5ForConditionalGeneration", "translation", _T5),
    "mt5": ("MT5ForConditionalGeneration", "translation", _T5),
    "longt5": ("LongT5ForConditionalGeneration", "translation", _T5 | {"local_radius": 3}),
    "switch_transformers": (
        "SwitchTransformersForConditionalGeneration",
        "translation",
        _T5 | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 2},
    ),
    "bart": ("BartForConditionalGeneration", "translation", {}),
    "mbart": ("MBartForConditionalGeneration", "translation", {}),
    "pegasus": ("PegasusForConditionalGeneration", "translation", {}),
    "marian": ("MarianMTModel", "translation", {}),
    "m2m_100": ("M2M100ForConditionalGeneration", "translation", {}),
    "blenderbot": ("BlenderbotForConditionalGeneration", "translation", {}),
    "led": (
        "LEDForConditionalGeneration",
        "translation",
        {
            "attention_window": 4,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        },
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "transcription",
        {
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "apply_spec_augment": True,
            "mask_time_length": 2,
            "mask_time_prob": 0.2,
            "dropout": 0.1,
        },
    ),
    "speech_to_text": (
        "Speech2TextForConditionalGeneration",
        "transcription of frames",
        {
            "input_feat_per_channel": 8,
            "max_source_positions": 32,
            "max_target_positions": 16,
            "conv_channels": 16,
        },
    ),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", "waves", _SPEECH),
    "hubert": ("HubertForSequenceClassification", "waves", _SPEECH),
    "wavlm": ("WavLMForSequenceClassification", "waves", _SPEECH),
    "audio-spectrogram-transformer": (
        "ASTForAudioClassification",
        "spectra",
        {
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
            "max_length": 24,
            "num_mel_bins": 16,
        },
    ),
    "vit": ("ViTForImageClassification", "images", {"patch_size": 8}),
    "deit": ("DeiTForImageClassification", "images", {"patch_size": 8}),
    "beit": ("BeitForImageClassification", "images", {"patch_size": 8}),
    "dinov2": ("Dinov2ForImageClassification", "images", {"patch_size": 8}),
    "swin": ("SwinForImageClassification", "images", _SWIN),
    "swinv2": ("Swinv2ForImageClassification", "images", _SWIN),
    "convnext": ("ConvNextForImageClassification", "images", _STAGES | {"num_stages": 2}),
    "convnextv2": ("ConvNextV2ForImageClassification", "images", _STAGES | {"num_stages": 2}),
    "resnet": ("ResNetForImageClassification", "images", _STAGES | {"embedding_size": 8}),
    "regnet": (
        "RegNetForImageClassification",
        "images",
        _STAGES | {"embedding_size": 8, "groups_width": 8},
    ),
    "mobilenet_v2": (
        "MobileNetV2ForImageClassification",
        "images of 64",
        {"depth_multiplier": 0.25},
    ),
    "efficientnet": (
        "EfficientNetForImageClassification",
        "images of 64",
        {
            "width_coefficient": 0.25,
            "depth_coefficient": 0.25,
            "hidden_dim": 320,
            "num_hidden_layers": 16,
        },
    ),
    "segformer": (
        "SegformerForImageClassification",
        "images",
        _STAGES
        | {
            "num_encoder_blocks": 2,
            "num_attention_heads": [1, 2],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "sr_ratios": [2, 1],
            "mlp_ratios": [2, 2],
        },
    ),
    "pvt": (
        "PvtForImageClassification",
        "images",
        {
            "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 2],
            "sequence_reduction_ratios": [2, 2, 1, 1],
        },
    ),
    "poolformer": (
        "PoolFormerForImageClassification",
        "images",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    ),
    "levit": (
        "LevitForImageClassification",
        "images of 128",
        {
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "drop_path_rate": 0,
            "key_dim": [4, 4, 4],
            "image_size": 128,
        },
    ),
    "clip": ("CLIPModel", "image and text", {}),
    "siglip": ("SiglipModel", "image and text", {}),
}
_OF_PAIRS = ("CLIPModel", "SiglipModel")
_UNSPLIT = (*_OF_PAIRS, "LevitForImageClassification")


def _build(model: str, own: dict[str, Any]) -> nn.Module:
    cls = getattr(transformers, model)
    if model in _OF_PAIRS:
        parts = {name: _TINY[name] for name in _CLIP_PARTS}
        text = {
            **parts,
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "max_position_embeddings": 8,
        }
        config = cls.config_class(
            text_config=text,
            vision_config={**parts, "image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
        return cls(config)  # type: ignore[no-any-return]
    known = cls.config_class()
    tiny = {name: value for name, value in _TINY.items() if hasattr(known, name)}
    chosen = {name: value for name, value in (tiny | own).items() if value is not _DEFAULT}
    return cls(cls.config_class(**chosen))  # type: ignore[no-any-return]


def families() -> list[Family]:
    """By transformers' model types."""
    return [
        Family(
            library="transformers",
            name=name,
            model=model,
            build=partial(_build, model, own),
            batch=TASKS[task][0],
            weight=TASKS[task][1],
            chunk=WHOLE if model in _UNSPLIT else 2,
        )
        for name, (model, task, own) in _MODELS.items()
    ]
