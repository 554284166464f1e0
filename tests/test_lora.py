"""LoRA from attachment to file: zero effect at first, only the chosen layers, and readers get back what was
trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trainer
from safetensors.torch import load_file

from sdtrainer import families
from sdtrainer.families import BaseSection
from sdtrainer.formats.safetensors_file import read_header
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
