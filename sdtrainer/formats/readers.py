"""Which program reads which of our files, and how: one table, shown to the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Program = Literal["A1111 / Forge", "ComfyUI", "diffusers"]
Layout = Literal["webui", "diffusers", "pt"]


@dataclass(frozen=True)
class Reader:
    """`how` is a sentence for the user; `tried` says with which version the claim was tried, or is empty."""

    method: str
    family: str
    layout: Layout
    program: Program
    reads: Literal["yes", "no", "converted"]
    how: str
    tried: str = ""


_LAYOUTS: tuple[Layout, ...] = ("webui", "diffusers")
_UNKNOWN = "Not known to read it: use ComfyUI or diffusers for Stable Diffusion 3."
READERS: tuple[Reader, ...] = (
    Reader(
        "full", "sd", "webui", "A1111 / Forge", "yes",
        "Put the file into models/Stable-diffusion and choose it as the checkpoint.",
        "the names and shapes of the published models; not run in it",
    ),
    Reader(
        "full", "sd", "webui", "ComfyUI", "yes",
        "Put the file into models/checkpoints and add a Load Checkpoint node.",
        "the names and shapes of the published models; not run in it",
    ),
    Reader(
        "full", "sd", "webui", "diffusers", "yes",
        'Call StableDiffusionPipeline.from_single_file("name.safetensors").',
        "its own converters, 0.42.1",
    ),
    Reader(
        "full", "sd", "diffusers", "A1111 / Forge", "no",
        "Export the webui file for this program.",
    ),
    Reader(
        "full", "sd", "diffusers", "ComfyUI", "no",
        "Export the webui file for this program.",
    ),
    Reader(
        "full", "sd", "diffusers", "diffusers", "yes",
        'Call StableDiffusionPipeline.from_pretrained("name-diffusers").',
        "its own loader, 0.42.1",
    ),
    Reader(
        "lora", "sd", "webui", "A1111 / Forge", "yes",
        "Put the file into models/Lora and write <lora:name:1> into the prompt.",
        "its own loaders, 1.8.0",
    ),
    Reader(
        "lora", "sd", "webui", "ComfyUI", "yes",
        "Put the file into models/loras and add a Load LoRA node.",
        "its key map, 0.3.64",
    ),
    Reader(
        "lora", "sd", "webui", "diffusers", "yes",
        'Call pipeline.load_lora_weights("name.safetensors").',
        "its own loader, 0.42.1",
    ),
    Reader(
        "lora", "sd", "diffusers", "A1111 / Forge", "no",
        "Export the webui file for this program.",
    ),
    Reader(
        "lora", "sd", "diffusers", "ComfyUI", "no",
        "It would leave out the attention layers: export the webui file for this program.",
        "its key map, 0.3.64",
    ),
    Reader(
        "lora", "sd", "diffusers", "diffusers", "yes",
        'Call pipeline.load_lora_weights("name-diffusers.safetensors").',
        "its own loader, 0.42.1",
    ),
    Reader(
        "loha", "sd", "webui", "A1111 / Forge", "yes",
        "Put the file into models/Lora and write <lora:name:1> into the prompt.",
        "its own loaders, 1.8.0",
    ),
    Reader(
        "loha", "sd", "webui", "ComfyUI", "yes",
        "Put the file into models/loras and add a Load LoRA node.",
        "its key map, 0.3.64",
    ),
    Reader(
        "loha", "sd", "webui", "diffusers", "no",
        "diffusers reads LoRA alone for Stable Diffusion: draw with it here, or train a LoRA.",
        "its own loader, 0.42.1",
    ),
    Reader(
        "lokr", "sd", "webui", "A1111 / Forge", "yes",
        "Put the file into models/Lora and write <lora:name:1> into the prompt.",
        "its own loaders, 1.8.0",
    ),
    Reader(
        "lokr", "sd", "webui", "ComfyUI", "yes",
        "Put the file into models/loras and add a Load LoRA node. Tucker convolutions are left out there.",
        "its key map, 0.3.64",
    ),
    Reader(
        "lokr", "sd", "webui", "diffusers", "no",
        "diffusers reads LoRA alone for Stable Diffusion: draw with it here, or train a LoRA.",
        "its own loader, 0.42.1",
    ),
    Reader(
        "hypernetwork", "sd", "webui", "A1111 / Forge", "yes",
        "A1111: put the file into models/hypernetworks and write <hypernet:name:1> into the prompt. Forge "
        "shows such files without an effect.",
        "not run: its loader's source, 2023-01",
    ),
    Reader(
        "hypernetwork", "sd", "webui", "ComfyUI", "yes",
        "Put the file into models/hypernetworks and add a HypernetworkLoader node. It knows the activations "
        "linear, relu, leakyrelu, elu, swish, tanh, sigmoid, softsign and mish.",
        "not run: its loader's source, 2025-11",
    ),
    Reader(
        "hypernetwork", "sd", "webui", "diffusers", "no",
        "diffusers has no hypernetworks: draw with it here, or train a LoRA.",
    ),
    Reader(
        "textual_inversion", "sd", "webui", "A1111 / Forge", "yes",
        "Put the file into the folder embeddings and write the file's name into the prompt.",
        "its own loaders, 1.8.0",
    ),
    Reader(
        "textual_inversion", "sd", "webui", "ComfyUI", "yes",
        "Put the file into models/embeddings and write embedding:name into the prompt.",
        "its own loaders, 0.3.64",
    ),
    Reader(
        "textual_inversion", "sd", "webui", "diffusers", "yes",
        'Call pipeline.load_textual_inversion("name.safetensors", token="<mine>").',
        "its own loader, 0.42.1",
    ),
    Reader(
        "textual_inversion", "sd", "pt", "A1111 / Forge", "yes",
        "Put the file into the folder embeddings and write the file's name into the prompt.",
        "its own loaders, 1.8.0",
    ),
    Reader(
        "textual_inversion", "sd", "pt", "ComfyUI", "yes",
        "Put the file into models/embeddings and write embedding:name into the prompt.",
        "its own loaders, 0.3.64",
    ),
    Reader(
        "textual_inversion", "sd", "pt", "diffusers", "yes",
        'Call pipeline.load_textual_inversion("name.pt"); the word is in the file.',
        "its own loader, 0.42.1",
    ),
    Reader(
        "textual_inversion", "sd", "diffusers", "A1111 / Forge", "yes",
        "Put the file into the folder embeddings and write the file's name into the prompt.",
        "its own loaders, 1.8.0",
    ),
    Reader(
        "textual_inversion", "sd", "diffusers", "ComfyUI", "yes",
        "Put the file into models/embeddings and write embedding:name into the prompt.",
        "its own loaders, 0.3.64",
    ),
    Reader(
        "textual_inversion", "sd", "diffusers", "diffusers", "yes",
        'Call pipeline.load_textual_inversion("name-diffusers.safetensors"); the word is in the file.',
        "its own loader, 0.42.1",
    ),
    Reader(
        "full", "sdxl", "webui", "A1111 / Forge", "yes",
        "Put the file into models/Stable-diffusion and choose it as the checkpoint.",
        "the names and shapes of the published model; not run in it",
    ),
    Reader(
        "full", "sdxl", "webui", "ComfyUI", "yes",
        "Put the file into models/checkpoints and add a Load Checkpoint node.",
        "the names and shapes of the published model; not run in it",
    ),
    Reader(
        "full", "sdxl", "webui", "diffusers", "yes",
        'Call StableDiffusionXLPipeline.from_single_file("name.safetensors").',
        "its own converters, 0.42.1",
    ),
    Reader(
        "full", "sdxl", "diffusers", "A1111 / Forge", "no",
        "Export the webui file for this program.",
    ),
    Reader(
        "full", "sdxl", "diffusers", "ComfyUI", "no",
        "Export the webui file for this program.",
    ),
    Reader(
        "full", "sdxl", "diffusers", "diffusers", "yes",
        'Call StableDiffusionXLPipeline.from_pretrained("name-diffusers").',
        "its own loader, 0.42.1",
    ),
    Reader(
        "lora", "sdxl", "webui", "A1111 / Forge", "yes",
        "Put the file into models/Lora and write <lora:name:1> into the prompt.",
        "the names that kohya's files have; not run in it",
    ),
    Reader(
        "lora", "sdxl", "webui", "ComfyUI", "yes",
        "Put the file into models/loras and add a Load LoRA node.",
        "its key map, 0.3.64",
    ),
    Reader(
        "lora", "sdxl", "webui", "diffusers", "yes",
        'Call pipeline.load_lora_weights("name.safetensors").',
        "its own loader, 0.42.1",
    ),
    Reader(
        "lora", "sdxl", "diffusers", "A1111 / Forge", "no",
        "Export the webui file for this program.",
    ),
    Reader(
        "lora", "sdxl", "diffusers", "ComfyUI", "no",
        "It would leave out the attention layers: export the webui file for this program.",
        "its key map, 0.3.64",
    ),
    Reader(
        "lora", "sdxl", "diffusers", "diffusers", "yes",
        'Call pipeline.load_lora_weights("name-diffusers.safetensors").',
        "its own loader, 0.42.1",
    ),
    Reader(
        "loha", "sdxl", "webui", "A1111 / Forge", "yes",
        "Put the file into models/Lora and write <lora:name:1> into the prompt.",
        "the names that kohya's files have; not run in it",
    ),
    Reader(
        "loha", "sdxl", "webui", "ComfyUI", "yes",
        "Put the file into models/loras and add a Load LoRA node.",
        "its key map, 0.3.64",
    ),
    Reader(
        "loha", "sdxl", "webui", "diffusers", "no",
        "diffusers reads LoRA alone for Stable Diffusion: draw with it here, or train a LoRA.",
        "its own loader, 0.42.1",
    ),
    Reader(
        "lokr", "sdxl", "webui", "A1111 / Forge", "yes",
        "Put the file into models/Lora and write <lora:name:1> into the prompt.",
        "the names that kohya's files have; not run in it",
    ),
    Reader(
        "lokr", "sdxl", "webui", "ComfyUI", "yes",
        "Put the file into models/loras and add a Load LoRA node. Tucker convolutions are left out there.",
        "its key map, 0.3.64",
    ),
    Reader(
        "lokr", "sdxl", "webui", "diffusers", "no",
        "diffusers reads LoRA alone for Stable Diffusion: draw with it here, or train a LoRA.",
        "its own loader, 0.42.1",
    ),
    Reader(
        "textual_inversion", "sdxl", "webui", "A1111 / Forge", "yes",
        "Put the file into the folder embeddings and write the file's name into the prompt.",
        "clip_l and clip_g, as its loader's source has them; not run",
    ),
    Reader(
        "textual_inversion", "sdxl", "webui", "ComfyUI", "yes",
        "Put the file into models/embeddings and write embedding:name into the prompt.",
        "clip_l and clip_g, as its loader's source has them; not run",
    ),
    Reader(
        "textual_inversion", "sdxl", "webui", "diffusers", "converted",
        "Load the file and give its clip_l to text_encoder and tokenizer, its clip_g to text_encoder_2 and "
        "tokenizer_2, each with pipeline.load_textual_inversion.",
        "its own loader, 0.42.1",
    ),
    Reader(
        "textual_inversion", "sdxl", "pt", "A1111 / Forge", "yes",
        "Put the file into the folder embeddings and write the file's name into the prompt.",
        "clip_l and clip_g, as its loader's source has them; not run",
    ),
    Reader(
        "textual_inversion", "sdxl", "pt", "ComfyUI", "yes",
        "Put the file into models/embeddings and write embedding:name into the prompt.",
        "clip_l and clip_g, as its loader's source has them; not run",
    ),
    Reader(
        "textual_inversion", "sdxl", "pt", "diffusers", "converted",
        "Load the file and give its clip_l to text_encoder and tokenizer, its clip_g to text_encoder_2 and "
        "tokenizer_2, each with pipeline.load_textual_inversion.",
        "its own loader, 0.42.1",
    ),
    Reader(
        "textual_inversion", "sdxl", "diffusers", "A1111 / Forge", "yes",
        "Put the file into the folder embeddings and write the file's name into the prompt.",
        "clip_l and clip_g, as its loader's source has them; not run",
    ),
    Reader(
        "textual_inversion", "sdxl", "diffusers", "ComfyUI", "yes",
        "Put the file into models/embeddings and write embedding:name into the prompt.",
        "clip_l and clip_g, as its loader's source has them; not run",
    ),
    Reader(
        "textual_inversion", "sdxl", "diffusers", "diffusers", "converted",
        "Load the file and give its clip_l to text_encoder and tokenizer, its clip_g to text_encoder_2 and "
        "tokenizer_2, each with pipeline.load_textual_inversion.",
        "its own loader, 0.42.1",
    ),
    *(
        row
        for layout in _LAYOUTS
        for row in (
            Reader("full", "sd3", layout, "A1111 / Forge", "no", _UNKNOWN),
            Reader("lora", "sd3", layout, "A1111 / Forge", "no", _UNKNOWN),
            Reader(
                "lora", "sd3", layout, "ComfyUI", "yes",
                "Put the file into models/loras and add a Load LoRA node. Of a DoRA take the webui file.",
                "its key map, 0.3.64",
            ),
            Reader(
                "lora", "sd3", layout, "diffusers", "yes",
                'Call pipeline.load_lora_weights("name.safetensors"). Of a DoRA take the diffusers file.',
                "its own loader, 0.42.1",
            ),
        )
    ),
    Reader(
        "full", "sd3", "webui", "ComfyUI", "yes",
        "Put the file into models/checkpoints and add a Load Checkpoint node. T5 is not in it: with a "
        "TripleCLIPLoader node it is read from a file of its own.",
        "the names that its key map has, 0.3.64; not run in it",
    ),
    Reader(
        "full", "sd3", "webui", "diffusers", "yes",
        'Call StableDiffusion3Pipeline.from_single_file("name.safetensors", text_encoder_3=None, '
        "tokenizer_3=None).",
        "its own converters, 0.42.1",
    ),
    Reader("full", "sd3", "diffusers", "ComfyUI", "no", "Export the webui file for this program."),
    Reader(
        "full", "sd3", "diffusers", "diffusers", "yes",
        'Call StableDiffusion3Pipeline.from_pretrained("name-diffusers"); without T5 give it also '
        "text_encoder_3=None and tokenizer_3=None.",
        "its own loader, 0.42.1",
    ),
    *(
        row
        for method in ("loha", "lokr")
        for row in (
            Reader(method, "sd3", "webui", "A1111 / Forge", "no", _UNKNOWN),
            Reader(
                method, "sd3", "webui", "ComfyUI", "yes",
                "Put the file into models/loras and add a Load LoRA node.",
                "its key map, 0.3.64",
            ),
            Reader(
                method, "sd3", "webui", "diffusers", "no",
                "diffusers reads LoRA alone for Stable Diffusion: draw with it here, or train a LoRA.",
            ),
        )
    ),
    *(
        row
        for layout in (*_LAYOUTS, "pt")
        for row in (
            Reader("textual_inversion", "sd3", layout, "A1111 / Forge", "no", _UNKNOWN),
            Reader(
                "textual_inversion", "sd3", layout, "ComfyUI", "yes",
                "Put the file into models/embeddings and write embedding:name into the prompt.",
                "clip_l and clip_g, as its loader's source has them; not run",
            ),
            Reader(
                "textual_inversion", "sd3", layout, "diffusers", "no",
                "Its pipeline for Stable Diffusion 3 takes no learnt words: draw with it here.",
            ),
        )
    ),
)  # fmt: skip


def readers_of(method: str, family: str, layout: Layout) -> tuple[Reader, ...]:
    """Return what each program does with a file of this kind."""
    return tuple(r for r in READERS if (r.method, r.family, r.layout) == (method, family, layout))
