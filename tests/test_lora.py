"""LoRA from attachment to file: zero effect at first, only the chosen layers, and readers get back what was
trained.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sd15
import tiny
import torch
from conftest import Trainer
from safetensors.torch import load_file

from sdtrainer import diffusion, families
from sdtrainer.families import BaseSection
from sdtrainer.formats.safetensors_file import read_header
from sdtrainer.methods import adapter
from sdtrainer.methods import targets as chosen
from sdtrainer.methods.lora import METHOD, LoraSection
from sdtrainer.seams import DENOISER, ExportOrder, LearningRates, Parts
from sdtrainer.section import UserError

RATES = LearningRates(1e-3, 5e-4)
EVERYTHING = LoraSection(rank=3, alpha=6.0, targets="with convolutions", train_text_encoder=True)
EMBEDDING = LoraSection(
    rank=2, alpha=2.0, targets="own list", own_targets=["*attn2.to_k", "text_encoder.*token_embedding"]
)


def load(base: Path) -> Parts:
    """A fresh copy of the base model."""
    return copy.deepcopy(_loaded(base))


@cache
def _loaded(base: Path) -> Parts:
    facts = families.recognise(BaseSection(path=str(base)))
    parts = families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))
    for module in parts.modules.values():
        module.requires_grad_(False)
    return parts


def attached(base: Path, section: LoraSection) -> Parts:
    """Parts whose adapters hold random numbers, as after training."""
    parts = load(base)
    METHOD.attach(parts, section, RATES)
    torch.manual_seed(1)
    for module in parts.modules.values():
        for parameter in module.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
    return parts


def output(parts: Parts) -> torch.Tensor:
    """What the denoiser says to a fixed input and caption."""
    family = families.family_of(parts.facts)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    sizes = torch.zeros(2, 6)
    with torch.no_grad():
        said = family.encode_text(parts, family.tokenize(parts, ["a disc", "zib"], 1), 0, sizes)
        return parts.denoiser(noisy, torch.tensor([100, 900]), said.prompt_embeds).sample


def order(folder: Path, precision: str = "fp32", formats: tuple[str, ...] = ("webui",)) -> ExportOrder:
    return ExportOrder(folder, "result", precision, formats, {"ss_note": "test"})  # type: ignore[arg-type]


def merged(base: Path, file: Path) -> Parts:
    """An independent reading of the kohya layout: W + up @ down * alpha / rank, by module name alone."""
    parts, state = load(base), load_file(file)
    for prefix, module in (
        ("lora_unet_", parts.denoiser),
        ("lora_te_text_model_", parts.modules["text_encoder"]),
    ):
        for path, layer in module.named_modules():
            name = prefix + path.removeprefix("text_model.").replace(".", "_")
            if f"{name}.alpha" not in state:
                continue
            down, up = (
                state.pop(f"{name}.lora_down.weight").float(),
                state.pop(f"{name}.lora_up.weight").float(),
            )
            scale = state.pop(f"{name}.alpha").item() / down.shape[0]
            layer.weight.data += scale * (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
    assert not state, f"no module for {list(state)[:3]}"
    return parts


def test_attaching_changes_nothing_at_first(base: Path) -> None:
    before, parts = output(load(base)), load(base)
    METHOD.attach(parts, EVERYTHING, RATES)
    assert torch.equal(before, output(parts))


def test_groups_carry_their_own_learning_rates(base: Path) -> None:
    groups = METHOD.attach(load(base), EVERYTHING, RATES)
    assert {group.name: group.lr for group in groups} == {"denoiser": 1e-3, "text encoder": 5e-4}
    assert all(p.requires_grad and p.dtype is torch.float32 for group in groups for p in group.parameters)


@pytest.mark.parametrize("section", [EVERYTHING, EMBEDDING], ids=["everything", "embedding"])
def test_an_independent_reader_gets_what_was_trained(
    base: Path, tmp_path: Path, section: LoraSection
) -> None:
    parts = attached(base, section)
    (file,) = METHOD.export(parts, section, order(tmp_path))
    torch.testing.assert_close(output(merged(base, file)), output(parts), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(output(load(base)), output(parts), atol=1e-2)


def test_half_precision_files_agree_within_a_thousandth(base: Path, tmp_path: Path) -> None:
    parts = attached(base, EVERYTHING)
    (file,) = METHOD.export(parts, EVERYTHING, order(tmp_path, "fp16"))
    live, read = output(parts), output(merged(base, file))
    assert (live - read).abs().max() < 5e-3 * live.abs().max()


@pytest.mark.parametrize("layout", ["webui", "diffusers"])
def test_diffusers_own_loader_gets_what_was_trained(base: Path, tmp_path: Path, layout: str) -> None:
    parts = attached(base, EVERYTHING)
    (file,) = METHOD.export(parts, EVERYTHING, order(tmp_path, formats=(layout,)))
    fresh = load(base)
    families.family_of(fresh.facts).pipeline(fresh).load_lora_weights(str(tmp_path), weight_name=file.name)
    torch.testing.assert_close(output(fresh), output(parts), rtol=1e-4, atol=1e-4)


def test_predicted_size_is_the_size_of_the_files_tensors(base: Path, tmp_path: Path) -> None:
    parts = attached(base, EVERYTHING)
    for precision in ("fp16", "fp32"):
        (file,) = METHOD.export(parts, EVERYTHING, order(tmp_path, precision))
        tensors = sum(info.num_bytes for info in read_header(file).tensors.values())
        assert METHOD.exported_bytes(parts, EVERYTHING, precision) == tensors  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "has", "lacks"),
    [("attention", "attn1_to_q", "ff_net"), ("attention and feed-forward", "ff_net_2", "resnets"),
     ("with convolutions", "resnets_0_conv1", "conv_in")],
)  # fmt: skip
def test_targets_choose_layers(base: Path, tmp_path: Path, targets: Any, has: str, lacks: str) -> None:
    section = LoraSection(rank=1, targets=targets)
    (file,) = METHOD.export(attached(base, section), section, order(tmp_path))
    keys = list(load_file(file))
    assert any(has in key for key in keys) and not any(lacks in key for key in keys)


def test_a_pattern_that_matches_nothing_is_named(base: Path) -> None:
    section = LoraSection(targets="own list", own_targets=["*attn2.to_k", "*no_such_layer"])
    with pytest.raises(UserError, match="no_such_layer"):
        METHOD.attach(load(base), section, RATES)


def test_an_empty_own_list_is_refused_before_anything_loads(trainer: Trainer) -> None:
    with pytest.raises(UserError, match="Own list of layers"):
        trainer.run(trainer.new(method__targets="own list"))


def test_every_chosen_layer_is_a_real_one(base: Path) -> None:
    parts = load(base)
    for wanted in chosen.DENOISER_TARGETS.values():
        assert chosen.choose(parts.modules[DENOISER], wanted, (torch.nn.Linear, torch.nn.Conv2d))


FEW: dict[str, Any] = {
    "targets": "own list",
    "own_targets": [
        "*attn1.to_q",
        "*attn2.to_k",
        "*proj_in",
        "*conv1",
        "*shortcut",
        "text_encoder.*layers.0.*",
    ],
}
"""Few layers, of every kind."""

VARIANTS = {
    "rank-stabilised": LoraSection(rank=4, alpha=3.0, rank_stabilised=True, **FEW),
    "dora": LoraSection(rank=3, alpha=2.0, dora=True, **FEW),
    "other ranks": LoraSection(rank=2, alpha=3.0, rank_patterns=["*attn2*: 5", "*attn*: 1", "*ff*: 4"]),
    "all at once": LoraSection(
        rank=4, alpha=2.0, rank_stabilised=True, dora=True, rank_patterns=["*.attn2.to_k: 2"], lr_ratio_b=4.0
    ),
}


@pytest.mark.parametrize("layout", ["webui", "diffusers"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_loaded_by_diffusers_and_by_us_as_trained(
    base: Path, tmp_path: Path, variant: str, layout: str
) -> None:
    section = VARIANTS[variant]
    parts = attached(base, section)
    (file,) = METHOD.export(parts, section, order(tmp_path, formats=(layout,)))
    ours = load(base)
    METHOD.put_on(ours, file, 1.0)
    torch.testing.assert_close(output(ours), output(parts), rtol=1e-4, atol=1e-4)
    if section.dora and layout == "webui":
        return  # diffusers leaves the sizes out of such a file, with a warning
    theirs = load(base)
    pipeline = families.family_of(theirs.facts).pipeline(theirs)
    pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    torch.testing.assert_close(output(theirs), output(parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["rank-stabilised", "other ranks"])
def test_strength_is_alpha_by_rank_in_the_file_alone(base: Path, tmp_path: Path, variant: str) -> None:
    section = VARIANTS[variant]
    parts = attached(base, section)
    (file,) = METHOD.export(parts, section, order(tmp_path))
    torch.testing.assert_close(output(merged(base, file)), output(parts), rtol=1e-4, atol=1e-4)


def test_rank_stabilised_alpha_is_alpha_times_root_of_rank_in_the_file(base: Path, tmp_path: Path) -> None:
    section = VARIANTS["rank-stabilised"]
    (file,) = METHOD.export(attached(base, section), section, order(tmp_path))
    alphas = {t.item() for name, t in load_file(file).items() if name.endswith(".alpha")}
    assert alphas == {3.0 * 4**0.5}
    assert METHOD.provenance(section)["alpha"] == 6.0


def test_dora_begins_as_the_base_and_has_a_size_per_output(base: Path, tmp_path: Path) -> None:
    section = VARIANTS["dora"]
    parts = load(base)
    METHOD.attach(parts, section, RATES)
    torch.testing.assert_close(output(parts), output(load(base)), rtol=1e-4, atol=1e-5)
    (file,) = METHOD.export(parts, section, order(tmp_path))
    state = load_file(file)
    sizes = {name: t for name, t in state.items() if name.endswith(".dora_scale")}
    assert len(sizes) == len(state) // 4
    for name, size in sizes.items():
        up = state[name.replace(".dora_scale", ".lora_up.weight")]
        assert size.shape == (len(up), *[1] * (up.ndim - 1))


def test_other_ranks_go_to_the_first_line_that_fits(base: Path, tmp_path: Path) -> None:
    section = VARIANTS["other ranks"]
    (file,) = METHOD.export(attached(base, section), section, order(tmp_path))
    state = load_file(file)
    downs = {name: t for name, t in state.items() if name.endswith("lora_down.weight")}
    assert len(downs) > 20
    for name, down in downs.items():
        wanted = 5 if "attn2" in name else 1 if "attn1" in name else 4 if "ff_" in name else 2
        assert len(down) == wanted, name
    assert {t.item() for name, t in state.items() if name.endswith(".alpha")} == {3.0}


def test_other_ranks_keep_the_strength(base: Path) -> None:
    parts = load(base)
    METHOD.attach(parts, VARIANTS["other ranks"], RATES)
    found = [layer for _, layer in adapter.layers(parts.denoiser)]
    assert len({layer.r["default"] for layer in found}) == 4
    assert {layer.scaling["default"] for layer in found} == {1.5}


def test_the_second_matrix_learns_faster_by_its_ratio(base: Path) -> None:
    parts = load(base)
    section = LoraSection(rank=2, lr_ratio_b=16.0, train_text_encoder=True, dora=True)
    groups = METHOD.attach(parts, section, RATES)
    assert {group.name: group.lr for group in groups} == {
        "denoiser": 1e-3, "denoiser up": 16e-3, "text encoder": 5e-4, "text encoder up": 8e-3,
    }  # fmt: skip
    names = {id(p): n for m in parts.modules.values() for n, p in m.named_parameters() if p.requires_grad}
    grouped = [names.pop(id(p)) for group in groups for p in group.parameters]
    assert not names and len(grouped) == len(set(grouped))
    for group in groups:
        shapes = [p.shape for p in group.parameters]
        assert shapes and all(shape[1:2] == (2,) for shape in shapes) is group.name.endswith("up")


@pytest.mark.parametrize(
    ("blocks", "inside"),
    [(["mid"], ("mid_block.",)), (["up", "down.0"], ("up_blocks.", "down_blocks.0.")),
     (["up.1"], ("up_blocks.1.",))],
)  # fmt: skip
def test_only_the_chosen_blocks_get_adapters(base: Path, blocks: list[str], inside: tuple[str, ...]) -> None:
    parts, everywhere = load(base), load(base)
    METHOD.attach(parts, LoraSection(rank=1, blocks=blocks), RATES)
    METHOD.attach(everywhere, LoraSection(rank=1), RATES)
    wanted = {path for path, _ in adapter.layers(everywhere.denoiser) if path.startswith(inside)}
    assert wanted and wanted == {path for path, _ in adapter.layers(parts.denoiser)}


REFUSED = [
    ({"blocks": ["middle"]}, "there is no 'middle'"),
    ({"blocks": ["mid.1"]}, "there is no 'mid.1'"),
    ({"blocks": []}, "none is given"),
    ({"rank_patterns": ["*attn2* 5"]}, "no pattern with a rank"),
    ({"rank_patterns": ["*attn2*: 0"]}, "no pattern with a rank"),
    ({"init_from": "no-such-file.safetensors"}, "no-such-file"),
    ({"init_from": "old.ckpt"}, "old.ckpt"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_loads(base: Path, settings: Any, words: str) -> None:
    facts = families.recognise(BaseSection(path=str(base)))
    with pytest.raises(UserError, match=words) as caught:
        METHOD.suits(LoraSection(**settings), facts)
    assert caught.value.path == f"method.{next(iter(settings))}" and caught.value.hint


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"blocks": ["up.7"]}, "up.7"), ({"rank_patterns": ["*conv1*: 4"]}, "conv1"),
     ({"dora": True, "targets": "own list", "own_targets": ["text_encoder.*token_embedding"]}, "token_emb")],
)  # fmt: skip
def test_what_matches_no_layer_is_named_before_anything_is_attached(
    base: Path, settings: Any, words: str
) -> None:
    parts = load(base)
    with pytest.raises(UserError, match=words):
        METHOD.attach(parts, LoraSection(**settings), RATES)
    assert not any(True for module in parts.modules.values() for _ in adapter.layers(module))


@pytest.mark.parametrize("layout", ["webui", "diffusers"])
@pytest.mark.parametrize("variant", ["dora", "other ranks"])
def test_a_lora_goes_on_from_a_file(base: Path, tmp_path: Path, variant: str, layout: str) -> None:
    parts = attached(base, VARIANTS[variant])
    (file,) = METHOD.export(parts, VARIANTS[variant], order(tmp_path, formats=(layout,)))
    section = VARIANTS[variant].model_copy(update={"init_from": str(file), "alpha": 5.0})
    METHOD.suits(section, parts.facts)
    again = load(base)
    METHOD.attach(again, section, RATES)
    torch.testing.assert_close(output(again), output(parts), rtol=1e-4, atol=1e-4)


def test_an_embedding_goes_on_from_a_file(base: Path, tmp_path: Path) -> None:
    parts = attached(base, EMBEDDING)
    (file,) = METHOD.export(parts, EMBEDDING, order(tmp_path))
    again = load(base)
    METHOD.attach(again, EMBEDDING.model_copy(update={"init_from": str(file)}), RATES)
    torch.testing.assert_close(output(again), output(parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"rank": 8}, "has rank 3"), ({"dora": True}, "is no DoRA"), ({"targets": "attention"}, "has the layer"),
     ({"train_text_encoder": False}, "has the layer text_encoder")],
)  # fmt: skip
def test_a_file_that_other_settings_made_is_no_beginning(
    base: Path, tmp_path: Path, settings: Any, words: str
) -> None:
    (file,) = METHOD.export(attached(base, EVERYTHING), EVERYTHING, order(tmp_path))
    section = EVERYTHING.model_copy(update=settings | {"init_from": str(file)})
    with pytest.raises(UserError, match=words) as caught:
        METHOD.suits(section, load(base).facts)
        METHOD.attach(load(base), section, RATES)
    assert caught.value.path == "method.init_from"


def test_a_file_of_another_base_is_no_beginning(base: Path, tmp_path: Path) -> None:
    wide = tiny.make_base(tmp_path / "wide", width=48)
    (file,) = METHOD.export(attached(wide, EVERYTHING), EVERYTHING, order(tmp_path))
    with pytest.raises(UserError, match="48 wide"):
        METHOD.suits(EVERYTHING.model_copy(update={"init_from": str(file)}), load(base).facts)


def test_the_sizes_of_files_for_the_published_model(tmp_path: Path) -> None:
    """Attention and projections in fp32, in MiB: what files of these ranks have always weighed."""
    facts = families.recognise(BaseSection(path=str(sd15.write(tmp_path / "sd15"))))
    counted = {}
    for rank in (8, 128):
        modules = families.family_of(facts).skeleton(facts)
        parts = Parts(facts, modules, {}, diffusion.Schedule(torch.empty(0)))
        section = LoraSection(rank=rank, alpha=rank, targets="attention and projections")
        with torch.device("meta"):
            METHOD.attach(parts, section, RATES)
        counted[rank] = METHOD.exported_bytes(parts, section, "fp32") / 2**20
    of_one = (counted[128] - counted[8]) / 120
    sizes = {rank: round(counted[8] + (rank - 8) * of_one, 1) for rank in (8, 16, 32, 64, 128)}
    assert sizes == {8: 10.1, 16: 20.3, 32: 40.5, 64: 81.1, 128: 162.2}
