"""Tiny real models and pictures for tests: the field's own classes with random weights, and a few drawn
images.
"""

from __future__ import annotations

import json
from pathlib import Path

PROJECTED = 24
"""How wide the pooled text is."""
PLACES = ("red", "green", "blue", "white")


def make_base(folder: Path, prediction_type: str = "epsilon", width: int = 32, seed: int = 0) -> Path:
    """Write a StableDiffusionPipeline folder of about 100,000 parameters for 64 px pictures."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=_vae(), text_encoder=CLIPTextModel(_text(tokenizer, width)), tokenizer=tokenizer, unet=unet,
        scheduler=_scheduler(prediction_type=prediction_type),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def make_sdxl(folder: Path, widths: tuple[int, int] = (32, 48), seed: int = 0, **scheduler: object) -> Path:
    """Write a StableDiffusionXLPipeline folder as small, with text encoders of these widths. Their configs
    give the end of text as older ones do, wrongly.
    """
    import torch
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    tokenizers = [make_tokenizer(folder.with_name(f"{folder.name}-tokenizer-{n}")) for n in (1, 2)]
    tokenizers[1].pad_token = "!"
    text, text_2 = (_text(t, w, eos_token_id=2) for t, w in zip(tokenizers, widths, strict=True))
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
        use_linear_projection=True, cross_attention_dim=sum(widths), attention_head_dim=(2, 4),
        norm_num_groups=8, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=PROJECTED + 6 * 8,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025), text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text_2), tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1], unet=unet, scheduler=_scheduler(**scheduler),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def make_sd3(folder: Path, widths: tuple[int, int] = (16, 24), with_t5: bool = False, seed: int = 0) -> Path:
    """Write a StableDiffusion3Pipeline folder as small, with CLIP text encoders of these widths: SD3.5 medium
    with one block of two attentions.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    torch.manual_seed(seed)
    tokenizers = [make_tokenizer(folder.with_name(f"{folder.name}-tokenizer-{n}")) for n in (1, 2)]
    tokenizers[1].pad_token = "!"
    text, text_2 = (
        CLIPTextModelWithProjection(_text(t, w, eos_token_id=2, projection_dim=w))
        for t, w in zip(tokenizers, widths, strict=True)
    )
    spelling = make_t5_tokenizer() if with_t5 else None
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=sum(widths) + 8, caption_projection_dim=16,
        pooled_projection_dim=sum(widths), pos_embed_max_size=32, dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(
            latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=text, tokenizer=tokenizers[0], text_encoder_2=text_2, tokenizer_2=tokenizers[1],
        text_encoder_3=T5EncoderModel(_t5(spelling, sum(widths) + 8)) if spelling else None,
        tokenizer_3=spelling,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def make_t5_tokenizer():  # type: ignore[no-untyped-def]
    """Return a tokenizer of T5 that spells."""
    from transformers import T5TokenizerFast

    letters = [(chr(c), -3.0) for c in range(97, 123)]
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    return T5TokenizerFast(vocab=words, extra_ids=0)


def _t5(tokenizer, width: int):  # type: ignore[no-untyped-def]
    from transformers import T5Config

    return T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip


def _text(tokenizer, width: int, **changes: int):  # type: ignore[no-untyped-def]
    from transformers import CLIPTextConfig

    values = dict(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, projection_dim=PROJECTED,
    )  # fmt: skip
    return CLIPTextConfig(**values | changes)


def _vae(**changes: float):  # type: ignore[no-untyped-def]
    from diffusers import AutoencoderKL

    values = dict(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, sample_size=64,
    )  # fmt: skip
    return AutoencoderKL(**values | changes)


def _scheduler(**changes: object):  # type: ignore[no-untyped-def]
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, **changes,
    )  # fmt: skip


def make_tokenizer(folder: Path):  # type: ignore[no-untyped-def]
    """Return a CLIPTokenizer that spells: one token per letter."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def random_like(states):  # type: ignore[no-untyped-def]
    """Return {part: {name: tensor}} of the same shapes with random numbers, no two alike."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        part: {name: torch.randn(value.shape, generator=generator) for name, value in state.items()}
        for part, state in states.items()
    }


def make_images(folder: Path, count: int = 4, size: tuple[int, int] = (64, 64)) -> Path:
    """Write `count` captioned drawings of a disc on coloured ground."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        colour = PLACES[number % len(PLACES)]
        image = Image.new("RGB", size, colour)
        left = 4 + 3 * number
        ImageDraw.Draw(image).ellipse((left, 10, left + 24, 34), fill="purple")
        image.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a zib disc, {colour}", encoding="utf-8")
    return folder
