"""Which layers get an adapter, and of which rank: what LoRA, LoHa and LoKr have in common in their settings.

Knows layers by their paths alone, nothing of what is put there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ..seams import DENOISER, Facts
from ..section import Section, UserError, knob

if TYPE_CHECKING:
    import torch

Targets = Literal[
    "attention",
    "attention and projections",
    "attention and feed-forward",
    "with convolutions",
    "own list",
]

_ATTENTION = r"(.*\.)?(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_PROJECTIONS = r"(.*\.)?(proj_in|proj_out|time_emb_proj|conv_shortcut)"
_FEED_FORWARD = r"(.*\.)?(ff|ff_context)\.net\.(0\.proj|2)"
_TRANSFORMER = rf"{_ATTENTION}|.*\.(proj_in|proj_out)|{_FEED_FORWARD}"
_CONVOLUTIONS = (
    r"(.*\.)?(conv1|conv2|time_emb_proj|conv_shortcut|downsamplers\.\d+\.conv|upsamplers\.\d+\.conv)"
)
_ENCODER_ATTENTION = r"(.*\.)?self_attn\.(q_proj|k_proj|v_proj|out_proj)"
_ENCODER = r"(.*\.)?(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
DENOISER_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": (_ATTENTION,),
    "attention and projections": (_ATTENTION, _PROJECTIONS),
    "attention and feed-forward": (_TRANSFORMER,),
    "with convolutions": (_TRANSFORMER, _CONVOLUTIONS),
}
ENCODER_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": (_ENCODER_ATTENTION,),
    "attention and projections": (_ENCODER_ATTENTION,),
    "attention and feed-forward": (_ENCODER,),
    "with convolutions": (_ENCODER,),
}
_OF_UNETS = ("attention and projections", "with convolutions")
LYCORIS_PRESETS: Mapping[str, str] = {
    "attention": "attn-only",
    "attention and feed-forward": "attn-mlp",
    "with convolutions": "full",
}
"""What LyCORIS calls these choices of layers."""

MAX_RANK = 1024
_BLOCK = re.compile(r"(down|mid|up)(?:\.(\d+))?")
_BLOCK_PATHS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


class AdapterSection(Section):
    """Settings that every adapter has. Each method adds its own `rank` and `alpha`."""

    rank: int
    alpha: float

    targets: Targets = knob(
        "attention and feed-forward",
        "Layers to train",
        "Which layers of the model get an adapter. Attention alone gives the smallest file; feed-forward "
        "layers learn more detail; convolutions help styles and textures; 'own list' uses the patterns "
        "below.",
        level="basic",
    )
    own_targets: list[str] = knob(
        [],
        "Own list of layers",
        "Patterns of layer names for 'own list': '*' stands for any text, as in *attn2.to_k. Names "
        "beginning with text_encoder. choose layers of the text encoder.",
        lines=3,
    )
    blocks: list[str] = knob(
        ["down", "mid", "up"],
        "Blocks to train",
        "Only layers inside these blocks of the denoiser get an adapter: down, mid, up, or a single one "
        "such as up.1. The way down and the middle shape the composition, the way up colours and "
        "surfaces. Layers outside of all blocks stay chosen.",
        lines=3,
    )
    rank_patterns: list[str] = knob(
        [],
        "Other ranks",
        "Lines such as '*attn2*: 32' give the layers that fit the pattern another rank; alpha changes in "
        "proportion. The first line that fits a layer counts.",
        lines=3,
    )
    train_text_encoder: bool = knob(
        False,
        "Train the text encoder too",
        "Also teaches the part that reads the prompt. Learns trigger words faster, but forgets more and "
        "needs more memory; text can then not be cached.",
        level="basic",
    )


def check(section: AdapterSection, facts: Facts) -> None:
    """Raise UserError when 'own list' is empty, a line of blocks or of ranks cannot be read, or the base has
    no such layers.
    """
    if section.targets == "own list" and not any(p.strip() for p in section.own_targets):
        raise UserError(
            "Own list of layers: it is empty.",
            "Add a pattern such as *attn2.to_k, or choose other layers to train.",
            "method.own_targets",
        )
    check_blocks(section.blocks, facts)
    if not facts.has_unet and section.targets in _OF_UNETS:
        raise UserError(
            f"Layers to train: '{section.targets}' is for a UNet, and {facts.title} is a transformer.",
            "Choose attention, or attention and feed-forward.",
            "method.targets",
        )
    _rank_rules(section)


def check_blocks(blocks: Sequence[str], facts: Facts) -> None:
    """Raise UserError when no block is given, or one that cannot be read, or the base has none."""
    if not facts.has_unet and list(blocks) != list(_BLOCK_PATHS):
        raise UserError(
            f"Blocks to train: {facts.title} has no way down and up, so that none can be chosen.",
            f"Write {', '.join(_BLOCK_PATHS)}, which means all of it.",
            "method.blocks",
        )
    if not blocks:
        raise UserError("Blocks to train: none is given.", "Add down, mid or up.", "method.blocks")
    for block in blocks:
        if not _BLOCK.fullmatch(block.strip()) or block.strip().startswith("mid."):
            raise UserError(
                f"Blocks to train: there is no '{block}'.",
                "Write down, mid, up, or one of them with a number, such as up.1.",
                "method.blocks",
            )


def parts_of(section: AdapterSection, facts: Facts) -> tuple[str, ...]:
    """Return the parts that get adapters, from the settings alone."""
    return tuple(part for part in (DENOISER, *facts.learning_encoders) if patterns(section, part))


def patterns(section: AdapterSection, part: str) -> tuple[str, ...]:
    """Return the regular expressions that a module path of `part` must match in full, one of them."""
    if section.targets == "own list":
        return tuple(glob(p.removeprefix(f"{part}.")) for p in section.own_targets if belongs(p, part))
    if part == DENOISER:
        return DENOISER_TARGETS[section.targets]
    return ENCODER_TARGETS[section.targets] if section.train_text_encoder else ()


def ranks(
    modules: Mapping[str, torch.nn.Module], section: AdapterSection, kinds: tuple[type, ...]
) -> dict[str, dict[str, int]]:
    """Return the rank of every layer that gets an adapter, by part and path. `kinds` are the layers' classes.

    Raises:
        UserError: a pattern or block matches no layer, or none is left; before anything is attached.
    """
    chosen = {part: choose(module, patterns(section, part), kinds) for part, module in modules.items()}
    chosen |= {DENOISER: in_blocks(chosen.get(DENOISER, ()), section.blocks)}
    if not any(chosen.values()):
        raise UserError("Layers to train: none is chosen.", "Choose more layers or blocks.", "method.targets")
    rules = _rank_rules(section)
    for pattern, _ in rules:
        if not any(fits(pattern, part, path) for part, paths in chosen.items() for path in paths):
            raise UserError(
                f"Other ranks: no trained layer matches '{pattern}'.",
                "Mend or remove the line.",
                "method.rank_patterns",
            )
    return {
        part: {path: rank_of(section, part, path) for path in paths}
        for part, paths in chosen.items()
        if paths
    }


def choose(module: torch.nn.Module, wanted: Sequence[str], kinds: tuple[type, ...]) -> list[str]:
    """Return the paths of layers of these classes whose path matches one of `wanted` in full.

    Raises:
        UserError: a pattern matches no such layer; it is named.
    """
    paths = [path for path, layer in module.named_modules() if isinstance(layer, kinds)]
    for pattern in wanted:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise UserError(
                f"Layers to train: no layer matches '{pattern}'.",
                f"Names look like {paths[len(paths) // 2]}; mend or remove the pattern.",
                "method.own_targets",
            )
    return [path for path in paths if any(re.fullmatch(pattern, path) for pattern in wanted)]


def in_blocks(paths: Iterable[str], blocks: Sequence[str]) -> list[str]:
    """Return the paths inside these blocks, and those outside of all blocks.

    Raises:
        UserError: a numbered block holds none of the paths.
    """
    prefixes = {block.strip(): _block_prefix(block.strip()) for block in blocks}
    paths = list(paths)
    for block, prefix in prefixes.items():
        if "." in block and not any(path.startswith(prefix) for path in paths):
            raise UserError(
                f"Blocks to train: no chosen layer lies in '{block}'.",
                "Choose another block or more layers.",
                "method.blocks",
            )
    wanted, every = tuple(prefixes.values()), tuple(f"{name}." for name in _BLOCK_PATHS.values())
    return [path for path in paths if path.startswith(wanted) or not path.startswith(every)]


def rank_of(section: AdapterSection, part: str, path: str) -> int:
    """Return the rank of one layer: that of the first line of 'other ranks' that fits, or the usual one."""
    return next((rank for pattern, rank in _rank_rules(section) if fits(pattern, part, path)), section.rank)


def other_ranks(section: AdapterSection) -> set[int]:
    """Return the ranks that some layers may have instead of the usual one."""
    return {rank for _, rank in _rank_rules(section)}


def fits(pattern: str, part: str, path: str) -> bool:
    """Return whether a pattern with '*' means this layer."""
    return belongs(pattern, part) and bool(re.fullmatch(glob(pattern.removeprefix(f"{part}.")), path))


def belongs(pattern: str, part: str) -> bool:
    """Return whether a pattern speaks of this part: its name in front chooses a text encoder."""
    names_encoder = pattern.startswith("text_encoder")
    return bool(pattern.strip()) and (pattern.startswith(f"{part}.") if names_encoder else part == DENOISER)


def glob(pattern: str) -> str:
    """Return a pattern with '*' for any text as a regular expression."""
    return "".join(".*" if c == "*" else re.escape(c) for c in pattern.strip())


def _block_prefix(block: str) -> str:
    name, _, number = block.partition(".")
    return f"{_BLOCK_PATHS[name]}.{number}." if number else f"{_BLOCK_PATHS[name]}."


def _rank_rules(section: AdapterSection) -> list[tuple[str, int]]:
    rules = []
    for line in filter(str.strip, section.rank_patterns):
        pattern, _, number = (word.strip() for word in line.rpartition(":"))
        if not pattern or not number.isdecimal() or not 1 <= int(number) <= MAX_RANK:
            raise UserError(
                f"Other ranks: '{line}' is no pattern with a rank from 1 to {MAX_RANK}.",
                "Write it as in *attn2*: 32.",
                "method.rank_patterns",
            )
        rules.append((pattern, int(number)))
    return rules
