"""Tiny captioners for tests: the field's own classes with random weights and real processors, as folders.

Their weights are large, so that what they write depends on the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_WORDS = ("a", "photo", "of", "the", "red", "blue", "green", "white", "disc", "on", "grass", "sky", "small")


def _save(model: Any, folder: Path, seed: int = 0) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(folder)


def _letters(cls: Any, special: tuple[str, ...] = (), **how: Any) -> Any:
    """Return a tokenizer that spells in bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = [*special, *sorted(ByteLevel.alphabet())]
    return cls(vocab={word: number for number, word in enumerate(words)}, merges=[], **how)


def make_blip(folder: Path) -> Path:
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    text = {"vocab_size": len(words) + 2, "encoder_hidden_size": 32, "projection_dim": 32}
    text |= {"max_position_embeddings": 64, "bos_token_id": len(words), "eos_token_id": 2, "sep_token_id": 3}
    config = BlipConfig(
        text_config=text | SIZES | {"pad_token_id": 0},
        vision_config={"image_size": 32, "patch_size": 8, "projection_dim": 32} | SIZES,
        projection_dim=32,
        image_text_hidden_size=32,
    )
    _save(BlipForConditionalGeneration(config), folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def make_blip2(folder: Path) -> Path:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessorPil,
        GPT2Tokenizer,
    )

    marks = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    tokenizer = _letters(GPT2Tokenizer, ("<s>", "<pad>", "</s>"), **marks)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = {"model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 32, "ffn_dim": 64}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 32}
    text |= {"max_position_embeddings": 128, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
    config = Blip2Config(
        vision_config={"image_size": 32, "patch_size": 8} | SIZES,
        qformer_config={"vocab_size": 30, "encoder_hidden_size": 32} | SIZES,
        text_config=text,
        num_query_tokens=4,
        image_token_index=image,
    )
    _save(Blip2ForConditionalGeneration(config), folder)
    looks = BlipImageProcessorPil(size={"height": 32, "width": 32})
    Blip2Processor(looks, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


def make_blip2_t5(folder: Path) -> Path:
    """One whose language model reads the question apart from what it answers."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessorPil,
        GPT2Tokenizer,
    )

    marks = {"eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    tokenizer = _letters(GPT2Tokenizer, ("<pad>", "</s>"), **marks)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = {"model_type": "t5", "vocab_size": len(tokenizer), "d_model": 32, "d_kv": 16, "d_ff": 64}
    text |= {"num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0}
    config = Blip2Config(
        vision_config={"image_size": 32, "patch_size": 8} | SIZES,
        qformer_config={"vocab_size": 30, "encoder_hidden_size": 32} | SIZES,
        text_config=text | {"eos_token_id": 1},
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    _save(Blip2ForConditionalGeneration(config), folder)
    looks = BlipImageProcessorPil(size={"height": 32, "width": 32})
    Blip2Processor(looks, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


def make_florence2(folder: Path) -> Path:
    from transformers import (
        BartTokenizer,
        CLIPImageProcessorPil,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    special = {"extra_special_tokens": {"image_token": "<image>"}}
    tokenizer = _letters(BartTokenizer, ("<s>", "<pad>", "</s>", "<unk>"), **special)
    text = {"model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1}
    text |= {"decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    text |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128}
    vision = {"depths": (1,) * 4, "embed_dim": (8, 8, 16, 32), "num_heads": (1, 1, 2, 2), "window_size": 4}
    vision |= {"num_groups": (1, 1, 2, 2), "projection_dim": 32, "max_position_embeddings": 8}
    image = tokenizer.image_token_id
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=image)
    _save(Florence2ForConditionalGeneration(config), folder)
    looks = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    looks.image_seq_length = 5
    Florence2Processor(looks, tokenizer).save_pretrained(folder)
    return folder


def _qwen_words(folder: Path) -> Any:
    """Write what a Qwen-VL reads with, and return its tokenizer."""
    from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil

    marks = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    tokenizer = _letters(Qwen2Tokenizer, **marks)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *_QWEN_MARKS.values()]})
    tokenizer.save_pretrained(folder)
    looks = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024})
    looks.save_pretrained(folder)
    return tokenizer


_QWEN_MARKS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


def _qwen_config(tokenizer: Any) -> dict[str, Any]:
    """Return what the configs of all Qwen-VL have alike."""
    of = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = SIZES | {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "head_dim": 16}
    text |= {"rope_parameters": rope, "max_position_embeddings": 512, "eos_token_id": of("<|im_end|>")}
    text |= {"pad_token_id": of("<|endoftext|>"), "bos_token_id": of("<|endoftext|>")}
    eyes = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    eyes |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32}
    eyes |= {"num_position_embeddings": 64}
    marks = {name: of(mark) for name, mark in _QWEN_MARKS.items()}
    return {"text_config": text, "vision_config": eyes, **marks}


def make_qwen(folder: Path) -> Path:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = _qwen_config(_qwen_words(folder))
    config["vision_config"] |= {"deepstack_visual_indexes": [0]}
    _save(Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)), folder)
    return folder


def make_qwen25(folder: Path) -> Path:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = _qwen_config(_qwen_words(folder))
    config["text_config"]["rope_parameters"] = {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]
    }  # fmt: skip
    config["vision_config"] |= {"window_size": 16, "fullatt_block_indexes": [1]}
    del config["vision_config"]["num_position_embeddings"]
    _save(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)), folder)
    return folder


def make_qwen35(folder: Path) -> Path:
    """A layer of each kind that it has: one with a state, one with attention."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    config = _qwen_config(_qwen_words(folder))
    config["text_config"] |= {"layer_types": ["linear_attention", "full_attention"]}
    config["text_config"] |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    config["text_config"] |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    config["text_config"]["rope_parameters"] |= {"partial_rotary_factor": 1.0}
    _save(Qwen3_5ForConditionalGeneration(Qwen3_5Config(**config)), folder)
    return folder


def make_joycaption(folder: Path) -> Path:
    from transformers import (
        GPT2Tokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipImageProcessorPil,
    )

    marks = {"bos_token": "<b>", "eos_token": "<e>", "pad_token": "<e>", "unk_token": "<e>"}
    tokenizer = _letters(GPT2Tokenizer, ("<b>", "<e>"), **marks)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    eyes = SIZES | {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8}
    text = SIZES | {"model_type": "llama", "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    config = LlavaConfig(
        vision_config=eyes,
        text_config=text | {"pad_token_id": 1, "max_position_embeddings": 512},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_select_strategy="full",
    )
    _save(LlavaForConditionalGeneration(config), folder)
    LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template="{% for m in messages %}{{ '<image>' if m['role'] == 'user' }}"
        "{{ m['content'] + '<e>' }}{% endfor %}",
    ).save_pretrained(folder)
    return folder


TAGS = (
    ("9", "general", 5),
    ("0", "red_background", 2),
    ("0", "blue_background", 0),
    ("0", "o_o", 1),
    ("4", "zib_(disc)", 2),
)
"""Category, name, and the channel that makes it sure (blue is 0); 5 is always sure."""


def make_tagger(folder: Path) -> Path:
    """Write a tagger of 8 px: how sure it is of a tag is how bright that channel is on the whole."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    weights = np.zeros((3, len(TAGS)), np.float32)
    for number, (_, _, channel) in enumerate(TAGS):
        weights[slice(None) if channel == 5 else channel, number] = 1 / 255
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", len(TAGS)])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    rows = [f"{number},{name},{category},1" for number, (category, name, _) in enumerate(TAGS)]
    table = "\n".join(["tag_id,name,category,count", *rows])
    (folder / "selected_tags.csv").write_text(table, encoding="utf-8")
    return folder


MAKERS = {
    "blip": make_blip,
    "blip2": make_blip2,
    "florence2": make_florence2,
    "qwen": make_qwen,
    "joycaption": make_joycaption,
}
