"""Which program reads which of our files, and how: one table, shown to the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Program = Literal["A1111 / Forge", "ComfyUI", "diffusers"]
Layout = Literal["webui", "diffusers", "pt"]
Reads = Literal["yes", "no", "converted"]


@dataclass(frozen=True)
class Reader:
    """`methods`, `families` and `layouts` are all that this is said of. `how` is a sentence for the user;
    `tried` says with which version the claim was tried, or is empty.
    """

    methods: tuple[str, ...]
    families: tuple[str, ...]
    layouts: tuple[Layout, ...]
    program: Program
    reads: Reads
    how: str
    tried: str = ""


def readers_of(method: str, family: str, layout: Layout) -> tuple[Reader, ...]:
    """Return what each program does with a file of this kind."""
    return tuple(r for r in READERS if method in r.methods and family in r.families and layout in r.layouts)


_A1111: Program = "A1111 / Forge"
_COMFY: Program = "ComfyUI"
_DIFFUSERS: Program = "diffusers"
_FULL, _LORA, _WORDS, _HYPERNETWORK = ("full",), ("lora",), ("textual_inversion",), ("hypernetwork",)
_LYCORIS = ("loha", "lokr")
_SD, _SDXL, _SD3, _UNET = ("sd",), ("sdxl",), ("sd3",), ("sd", "sdxl")
_WEBUI: tuple[Layout, ...] = ("webui",)
_OWN: tuple[Layout, ...] = ("diffusers",)
_PT: tuple[Layout, ...] = ("pt",)
_BOTH: tuple[Layout, ...] = (*_WEBUI, *_OWN)
_ALL: tuple[Layout, ...] = (*_BOTH, *_PT)

_CHECKPOINT = "Put the file into models/Stable-diffusion and choose it as the checkpoint."
_CHECKPOINT_NODE = "Put the file into models/checkpoints and add a Load Checkpoint node."
_LORA_NODE = "Put the file into models/loras and add a Load LoRA node."
_LORA_WORD = "Put the file into models/Lora and write <lora:name:1> into the prompt."
_EMBEDDING = "Put the file into the folder embeddings and write the file's name into the prompt."
_EMBEDDING_WORD = "Put the file into models/embeddings and write embedding:name into the prompt."
_OTHER_FILE = "Export the webui file for this program."
_LORA_ALONE = "diffusers reads LoRA alone for Stable Diffusion: draw with it here, or train a LoRA."

_PUBLISHED = "the names and shapes of the published models; not run in it"
_COMFY_RUN, _KEY_MAP = "its own loaders, 0.3.75", "its key map, 0.3.64"
_A1111_RUN = "its own Lora extension, 1.10, over the names of a model"
_NO_DORA = "A1111 draws a DoRA wrongly: merge that into a model first, under Tools."
_NEARLY = "A DoRA comes out a little off; merged into a model, under Tools, it is exact."
_LOADER, _CONVERTERS = "its own loader, 0.42.1", "its own converters, 0.42.1"
_CLIPS = "clip_l and clip_g, as its loader's source has them; not run"

READERS: tuple[Reader, ...] = (
    Reader((*_FULL, *_LORA, *_LYCORIS, *_WORDS), _SD3, _ALL, _A1111, "no",
           "Not known to read it: use ComfyUI or diffusers for Stable Diffusion 3."),
    Reader(_FULL, _UNET, _WEBUI, _A1111, "yes", _CHECKPOINT, _PUBLISHED),
    Reader(_FULL, _UNET, _WEBUI, _COMFY, "yes", _CHECKPOINT_NODE, _COMFY_RUN),
    Reader(_FULL, _SD, _WEBUI, _DIFFUSERS, "yes",
           'Call StableDiffusionPipeline.from_single_file("name.safetensors").', _CONVERTERS),
    Reader(_FULL, _SDXL, _WEBUI, _DIFFUSERS, "yes",
           'Call StableDiffusionXLPipeline.from_single_file("name.safetensors").', _CONVERTERS),
    Reader(_FULL, _SD3, _WEBUI, _COMFY, "yes",
           f"{_CHECKPOINT_NODE} T5 is not in it: with a TripleCLIPLoader node it is read from a file of its "
           "own.", _COMFY_RUN),
    Reader(_FULL, _SD3, _WEBUI, _DIFFUSERS, "yes",
           'Call StableDiffusion3Pipeline.from_single_file("name.safetensors", text_encoder_3=None, '
           "tokenizer_3=None).", _CONVERTERS),
    Reader((*_FULL, *_LORA), _UNET, _OWN, _A1111, "no", _OTHER_FILE),
    Reader(_FULL, (*_UNET, *_SD3), _OWN, _COMFY, "no", _OTHER_FILE),
    Reader(_FULL, _SD, _OWN, _DIFFUSERS, "yes",
           'Call StableDiffusionPipeline.from_pretrained("name-diffusers").', _LOADER),
    Reader(_FULL, _SDXL, _OWN, _DIFFUSERS, "yes",
           'Call StableDiffusionXLPipeline.from_pretrained("name-diffusers").', _LOADER),
    Reader(_FULL, _SD3, _OWN, _DIFFUSERS, "yes",
           'Call StableDiffusion3Pipeline.from_pretrained("name-diffusers"); without T5 give it also '
           "text_encoder_3=None and tokenizer_3=None.", _LOADER),
    Reader(_LORA, _UNET, _WEBUI, _A1111, "yes", f"{_LORA_WORD} {_NO_DORA}", _A1111_RUN),
    Reader(_LYCORIS, _UNET, _WEBUI, _A1111, "yes", _LORA_WORD, _A1111_RUN),
    Reader(_LORA, _UNET, _WEBUI, _COMFY, "yes", f"{_LORA_NODE} {_NEARLY}", _COMFY_RUN),
    Reader(_LYCORIS, (*_UNET, *_SD3), _WEBUI, _COMFY, "yes", _LORA_NODE, _COMFY_RUN),
    Reader(_LORA, _UNET, _WEBUI, _DIFFUSERS, "yes",
           'Call pipeline.load_lora_weights("name.safetensors").', _LOADER),
    Reader(_LORA, _UNET, _OWN, _COMFY, "no",
           "It would leave out the attention layers: export the webui file for this program.", _KEY_MAP),
    Reader(_LORA, _UNET, _OWN, _DIFFUSERS, "yes",
           'Call pipeline.load_lora_weights("name-diffusers.safetensors").', _LOADER),
    Reader(_LORA, _SD3, _BOTH, _COMFY, "yes",
           f"{_LORA_NODE} Of a DoRA take the webui file; it comes out a little off.", _COMFY_RUN),
    Reader(_LORA, _SD3, _BOTH, _DIFFUSERS, "yes",
           'Call pipeline.load_lora_weights("name.safetensors"). Of a DoRA take the diffusers file.',
           _LOADER),
    Reader(_LYCORIS, _UNET, _WEBUI, _DIFFUSERS, "no", _LORA_ALONE, _LOADER),
    Reader(_LYCORIS, _SD3, _WEBUI, _DIFFUSERS, "no", _LORA_ALONE),
    Reader(_HYPERNETWORK, _SD, _WEBUI, _A1111, "yes",
           "A1111: put the file into models/hypernetworks and write <hypernet:name:1> into the prompt. Forge "
           "shows such files without an effect.", "not run: its loader's source, 2023-01"),
    Reader(_HYPERNETWORK, _SD, _WEBUI, _COMFY, "yes",
           "Put the file into models/hypernetworks and add a HypernetworkLoader node. It knows the "
           "activations linear, relu, leakyrelu, elu, swish, tanh, sigmoid, softsign and mish.",
           _COMFY_RUN),
    Reader(_HYPERNETWORK, _SD, _WEBUI, _DIFFUSERS, "no",
           "diffusers has no hypernetworks: draw with it here, or train a LoRA."),
    Reader(_WORDS, _SD, _ALL, _A1111, "yes", _EMBEDDING, "its own loaders, 1.8.0"),
    Reader(_WORDS, _SDXL, _ALL, _A1111, "yes", _EMBEDDING, _CLIPS),
    Reader(_WORDS, (*_UNET, *_SD3), _ALL, _COMFY, "yes", _EMBEDDING_WORD, _COMFY_RUN),
    Reader(_WORDS, _SD, _WEBUI, _DIFFUSERS, "yes",
           'Call pipeline.load_textual_inversion("name.safetensors", token="<mine>").', _LOADER),
    Reader(_WORDS, _SD, _PT, _DIFFUSERS, "yes",
           'Call pipeline.load_textual_inversion("name.pt"); the word is in the file.', _LOADER),
    Reader(_WORDS, _SD, _OWN, _DIFFUSERS, "yes",
           'Call pipeline.load_textual_inversion("name-diffusers.safetensors"); the word is in the file.',
           _LOADER),
    Reader(_WORDS, _SDXL, _ALL, _DIFFUSERS, "converted",
           "Load the file and give its clip_l to text_encoder and tokenizer, its clip_g to text_encoder_2 "
           "and tokenizer_2, each with pipeline.load_textual_inversion.", _LOADER),
    Reader(_WORDS, _SD3, _ALL, _DIFFUSERS, "no",
           "Its pipeline for Stable Diffusion 3 takes no learnt words: draw with it here."),
)  # fmt: skip
