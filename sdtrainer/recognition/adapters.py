"""Adapter files: kind, ranks, alphas, what they change, and for which base model, by names and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from ..formats import adapter_file, lycoris
from ..formats.safetensors_file import TensorInfo
from .bases import BASES
from .contents import Contents
from .found import Adapter, Found
from .models import parts_of

Layer = Mapping[str, TensorInfo]

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("LoHa", ("hada_w1_a",)),
    ("LoKr", ("lokr_w1", "lokr_w1_a")),
    ("DoRA", ("dora_scale", "magnitude")),
    ("LoRA", ("lora_down",)),
    ("set of changed weights", ("diff", "diff_b", "w_norm", "b_norm")),
)
"""By the words of lycoris.py that tell it; the first that any layer has counts."""
_FOREIGN: tuple[tuple[str, str], ...] = (
    ("(IA)³ adapter", ".on_input"),
    ("GLoRA", ".a1.weight"),
    ("OFT adapter", ".oft_blocks"),
    ("OFT adapter", ".oft_diag"),
)
"""Kinds that are known by name alone, by how their tensors' names end."""

_PARTS: tuple[tuple[str, str], ...] = (
    (r"lora_te2_|text_encoder_2\.", "text encoder 2"),
    (r"lora_te3_|text_encoder_3\.", "text encoder 3"),
    (r"lora_te1?_|text_encoder\.", "text encoder"),
    (r".*", "denoiser"),
)
_TARGETS: tuple[tuple[str, str], ...] = (
    (r"attn|to_[qkv]\b|to_out|[qkv]_proj|out_proj|self_attn|proj_(in|out)", "attention"),
    (r"ff_net|ff\.net|mlp|ff_context", "feed-forward"),
    (r"resnet|conv|in_layers|out_layers|skip_connection|_op$|sampler", "convolution"),
    (r".*", "other"),
)
"""What a layer is, by a piece of its name; the first that fits counts."""

_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"double_blocks|single_(transformer_)?blocks", "Flux"),
    (r"joint_blocks|add_[kqv]_proj", "SD3"),
)
_READS_TEXT = re.compile(r"attn2[._]to_[kv]$")
_SAID: tuple[tuple[str, str], ...] = (
    ("sdxl", "SDXL"), ("xl-v1", "SDXL"), ("3.5-large", "SD3.5 large"), ("3-5-large", "SD3.5 large"),
    ("3.5-medium", "SD3.5 medium"), ("3-5-medium", "SD3.5 medium"), ("sd3.5", "SD3.5 medium"), ("sd3", "SD3"),
    ("stable-diffusion-3", "SD3"), ("diffusion-v3", "SD3"), ("flux", "Flux"),
    ("sd_v2", "SD2"), ("diffusion-v2", "SD2"), ("sd_v1", "SD1"),
    ("diffusion-v1", "SD1"),
)  # fmt: skip
"""Pieces of what a header says of the base model."""


def look(contents: Contents) -> Found | None:
    """Return what adapter this is, or None if it is none."""
    named = adapter_file.by_name(contents.tensors)
    layers = {name: words for name, words in named.items() if "" not in words}
    foreign = next(
        (kind for kind, end in _FOREIGN if any(name.endswith(end) for name in contents.tensors)), ""
    )
    if not foreign and sum(map(len, layers.values())) <= len(contents.tensors) / 2:
        return None
    base, told = _base(layers, contents.metadata)
    kind = foreign or next(k for k, words in _KINDS if any(w in la for la in layers.values() for w in words))
    of = BASES[base].title if base else "a base model that its shapes do not tell"
    article = "an" if kind[0] in "(O" else "a"
    return Found(
        "adapter",
        f"{article} {kind} for {of}",
        f"the names of its tensors{f', and {told}' if told else ''}",
        base=base,
        parts=parts_of(contents.tensors, {"adapter": ""}),
        adapter=_adapter(kind, layers, contents),
    )


def part_of(name: str) -> str:
    """Return the part of a model that a layer of this name belongs to."""
    return _first(_PARTS, name)


def target_of(name: str) -> str:
    """Return what kind of layer this name is of: attention, feed-forward, convolution or other."""
    return _first(_TARGETS, name)


def _adapter(kind: str, layers: Mapping[str, Layer], contents: Contents) -> Adapter:
    ranks, alphas, targets = Counter[int](), Counter[float](), dict[str, Counter[str]]()
    for name, layer in layers.items():
        if rank := lycoris.rank(layer):
            ranks[rank] += 1
        if "alpha" in layer:
            alphas[round(contents.numbers(f"{name}.alpha")[0], 4)] += 1
        targets.setdefault(_first(_PARTS, name), Counter())[_first(_TARGETS, name)] += 1
    is_diffusers = any(".lora_A." in name or ".lora.down." in name for name in contents.tensors)
    layout = "diffusers" if is_diffusers else "webui"
    order = [part for _, part in _PARTS if part in targets]
    return Adapter(
        kind,
        layout,
        dict(ranks.most_common()),
        dict(alphas.most_common()),
        {part: dict(targets[part].most_common()) for part in reversed(order)},
    )


def _first(table: Iterable[tuple[str, str]], name: str) -> str:
    return next(word for pattern, word in table if re.search(pattern, name))


def _base(layers: Mapping[str, Layer], metadata: Mapping[str, str]) -> tuple[str, str]:
    """The base model and how it is told."""
    for pattern, base in _BY_NAME:
        if any(re.search(pattern, name) for name in layers):
            return (_sd3(layers) if base == "SD3" else base), "the names of its layers"
    widths = {row.text_width: base for base, row in reversed(BASES.items()) if not row.is_flow}
    for name, layer in layers.items():
        width = width_in(layer) if _READS_TEXT.search(name) else 0
        if width in widths:
            return widths[width], f"a text {width} wide"
    said = " ".join(metadata.get(k, "") for k in ("ss_base_model_version", "modelspec.architecture"))
    for piece, base in _SAID:
        if piece in said:
            return base, "what its header says"
    return _by_encoder(layers)


def _sd3(layers: Mapping[str, Layer]) -> str:
    """The large one is 2432 wide, the medium ones 1536."""
    widths = {width_in(layer) for name, layer in layers.items() if re.search(r"add_q_proj|attn_qkv", name)}
    return "SD3.5 large" if 2432 in widths else "SD3"


def _by_encoder(layers: Mapping[str, Layer]) -> tuple[str, str]:
    """Of a file that changes text encoders alone."""
    parts = {_first(_PARTS, name) for name in layers}
    if "text encoder 2" in parts:
        return "SDXL", "its two text encoders"
    widths = {width_in(layer) for name, layer in layers.items() if "q_proj" in name}
    for width, base in ((768, "SD1"), (1024, "SD2")):
        if parts == {"text encoder"} and width in widths:
            return base, f"a text encoder {width} wide"
    return "", ""


def width_in(layer: Layer) -> int:
    """Return how many numbers a layer reads, from its adapter's shapes; 0 if they do not tell."""
    for word, axis in (("lora_down", 1), ("hada_w1_b", 1), ("diff", 1)):
        if word in layer and len(layer[word].shape) > axis:
            return layer[word].shape[axis]
    halves = [next((layer[w].shape[1] for w in (f"{half}_b", half) if w in layer), 0) for half in _HALVES]
    return halves[0] * halves[1]


_HALVES = ("lokr_w1", "lokr_w2")
