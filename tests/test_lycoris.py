"""LoHa and LoKr from training to file: readers of the LyCORIS layout rebuild what the live model adds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Trainer
from safetensors.torch import load_file, save_file
from test_lora import RATES, load, order, output

from sdtrainer import families
from sdtrainer.events import Finished
from sdtrainer.families import BaseSection
from sdtrainer.formats.safetensors_file import read_header
from sdtrainer.methods import adapter, method_of
from sdtrainer.methods.loha import LohaSection
from sdtrainer.methods.lokr import LokrSection
from sdtrainer.seams import Parts
from sdtrainer.section import UserError

SOME = ["*attn1.to_q", "*attn2.to_k", "*proj_in", "*conv1", "*shortcut", "text_encoder.*fc1"]
ALL = {"targets": "own list", "own_targets": SOME}
"""Few layers, of every kind."""
SECTIONS: dict[str, Any] = {
    "loha": LohaSection(rank=3, alpha=2.0, rank_patterns=["*conv1*: 2"], **ALL),
    "loha, tucker": LohaSection(rank=3, alpha=2.0, tucker=True, **ALL),
    "lokr, whole": LokrSection(factor=4, **ALL),
    "lokr, divided": LokrSection(full_w2=False, factor=-1, rank=1, alpha=3.0, **ALL),
    "lokr, both divided": LokrSection(full_w2=False, rank=1, alpha=0.5, factor=4, decompose_both=True, **ALL),
    "lokr, partly whole": LokrSection(full_w2=False, rank=4, alpha=1.0, factor=4, **ALL),
    "lokr, tucker": LokrSection(full_w2=False, rank=2, alpha=3.0, factor=2, tucker=True, **ALL),
}
EVERY_SECTION = pytest.mark.parametrize("name", SECTIONS)


def attached(base: Path, section: Any) -> Parts:
    """Parts whose adapters hold random numbers, as after training."""
    parts = load(base)
    groups = method_of(section.kind).attach(parts, section, RATES)
    generator = torch.Generator().manual_seed(1)
    for group in groups:
        for parameter in group.parameters:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return parts


def by_layer(parts: Parts, state: dict[str, torch.Tensor]) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Each live layer with its tensors in the file, by what follows the name; every tensor is used."""
    left, found = dict(state), []
    for prefix, module in (
        ("lora_unet_", parts.denoiser),
        ("lora_te_text_model_", parts.modules["text_encoder"]),
    ):
        for path, layer in adapter.layers(module):
            name = prefix + path.removeprefix("text_model.").replace(".", "_") + "."
            mine = [key for key in left if key.startswith(name)]
            found.append((layer, {key.removeprefix(name): left.pop(key) for key in mine}))
    assert not left and len(found) > 15
    return found


def reading(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """The LyCORIS layout as its documents have it, in double precision and without a line of ours."""
    t = {word: tensor.double().numpy() for word, tensor in tensors.items()}

    def core(mid: str, out: str, into: str) -> np.ndarray:
        return np.einsum("xyhw,xo,yi->oihw", t[mid], t[out], t[into])

    if "hada_w1_a" in t:
        halves = [
            core(f"hada_t{i}", f"hada_w{i}_a", f"hada_w{i}_b")
            if f"hada_t{i}" in t
            else t[f"hada_w{i}_a"] @ t[f"hada_w{i}_b"]
            for i in "12"
        ]
        return halves[0] * halves[1] * t["alpha"] / t["hada_w1_b"].shape[0]
    rank = None
    if "lokr_w1" not in t:
        rank, t["lokr_w1"] = t["lokr_w1_b"].shape[0], t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_t2" in t:
        rank, t["lokr_w2"] = t["lokr_w2_a"].shape[0], core("lokr_t2", "lokr_w2_a", "lokr_w2_b")
    elif "lokr_w2" not in t:
        rank, t["lokr_w2"] = t["lokr_w2_b"].shape[0], t["lokr_w2_a"] @ t["lokr_w2_b"]
    product = np.einsum("ac,bd...->abcd...", t["lokr_w1"], t["lokr_w2"])
    (a, b, c, d), kernel = product.shape[:4], product.shape[4:]
    return product.reshape(a * b, c * d, *kernel) * (t["alpha"] / rank if rank else 1)


def lycoris_own(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the LyCORIS package makes of the same tensors."""
    from lycoris.functional import loha, lokr

    t: dict[str, Any] = dict.fromkeys(
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "hada_t1",
         "hada_t2")
    ) | tensors  # fmt: skip
    if "hada_w1_a" in tensors:
        gamma = float(t["alpha"]) / len(t["hada_w1_b"])
        words = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")
        return loha.diff_weight(*(t[word] for word in words), gamma=gamma)
    factors = [t[word] for word in ("lokr_w1_b", "lokr_w2_b") if t[word] is not None]
    scale = float(t["alpha"]) / len(factors[0]) if factors else 1.0
    words = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    return lokr.kron_weight(*(t[word] for word in words), scale=scale)


@EVERY_SECTION
def test_what_readers_rebuild_is_what_the_live_model_adds(base: Path, tmp_path: Path, name: str) -> None:
    section = SECTIONS[name]
    parts = attached(base, section)
    (file,) = method_of(section.kind).export(parts, section, order(tmp_path))
    for layer, tensors in by_layer(parts, load_file(file)):
        live = layer.get_delta_weight("default").detach()
        for rebuilt in (torch.from_numpy(reading(tensors)).float(), lycoris_own(tensors)):
            assert rebuilt.shape[0] == live.shape[0]
            torch.testing.assert_close(rebuilt.reshape(live.shape), live, rtol=1e-4, atol=1e-5)


@EVERY_SECTION
def test_it_begins_as_the_base_and_is_read_back_as_trained(base: Path, tmp_path: Path, name: str) -> None:
    section = SECTIONS[name]
    method, fresh = method_of(section.kind), load(base)
    method.attach(fresh, section, RATES)
    assert torch.equal(output(fresh), output(load(base)))
    parts, again = attached(base, section), load(base)
    (file,) = method.export(parts, section, order(tmp_path))
    method.put_on(again, file, 1.0)
    torch.testing.assert_close(output(again), output(parts), rtol=1e-4, atol=1e-4)
    assert (output(again) - output(load(base))).abs().max() > 1e-3


def test_the_choices_are_seen_in_the_file(base: Path, tmp_path: Path) -> None:
    words = {}
    for name, section in SECTIONS.items():
        (file,) = method_of(section.kind).export(attached(base, section), section, order(tmp_path))
        words[name] = {key.partition(".")[2] for key in load_file(file)}
    whole = {"lokr_w1", "lokr_w2", "alpha"}
    assert words["lokr, whole"] == whole and words["lokr, divided"] > {"lokr_w2_a", "lokr_w2_b"}
    assert "lokr_w1_a" in words["lokr, both divided"]
    assert "lokr_w2_b" in words["lokr, tucker"]
    assert "lokr_t2" not in words["lokr, tucker"], "ComfyUI and Forge fail at it (0.3.75)"
    assert whole < words["lokr, partly whole"]
    assert {"hada_t1", "hada_t2"} == words["loha, tucker"] - words["loha"]


@pytest.mark.parametrize("name", ["lokr, whole", "lokr, partly whole"])
def test_alpha_says_nothing_where_both_factors_are_whole(base: Path, tmp_path: Path, name: str) -> None:
    section = SECTIONS[name]
    method, parts = method_of("lokr"), attached(base, section)
    (file,) = method.export(parts, section, order(tmp_path))
    state = load_file(file)
    whole = [k for k in state if k.endswith("lokr_w2") and k.replace("w2", "w1") in state]
    assert whole
    for key in whole:
        state[key.replace("lokr_w2", "alpha")] *= 7
    save_file(state, tmp_path / "other.safetensors")
    again = load(base)
    method.put_on(again, tmp_path / "other.safetensors", 1.0)
    torch.testing.assert_close(output(again), output(parts), rtol=1e-4, atol=1e-4)


def test_tucker_products_do_not_vanish_in_a_file_of_half_precision(base: Path, tmp_path: Path) -> None:
    section = SECTIONS["loha, tucker"]
    parts = attached(base, section)
    for _, layer in adapter.layers(parts.denoiser):
        layer.hada_w2_a["default"].data *= 1e-4
    (file,) = method_of("loha").export(parts, section, order(tmp_path, "fp16"))
    assert {info.dtype for info in read_header(file).tensors.values()} == {"F32"}
    for layer, tensors in by_layer(parts, load_file(file)):
        live = layer.get_delta_weight("default").detach()
        rebuilt = torch.from_numpy(reading(tensors)).reshape(live.shape).float()
        assert (rebuilt - live).abs().max() < 1e-4 * live.abs().max()
    plain = SECTIONS["loha"]
    (file,) = method_of("loha").export(attached(base, plain), plain, order(tmp_path, "fp16"))
    assert "F16" in {info.dtype for info in read_header(file).tensors.values()}


@pytest.mark.parametrize("name", ["loha", "loha, tucker", "lokr, both divided"])
def test_mixed_precision_and_dropout_train_with_finite_gradients(base: Path, name: str) -> None:
    parts, section = load(base), SECTIONS[name].model_copy(update={"dropout": 0.3})
    groups = method_of(section.kind).attach(parts, section, RATES)
    optimizer = torch.optim.SGD([p for group in groups for p in group.parameters], lr=1.0)
    parts.denoiser.train()
    torch.manual_seed(0)
    for _ in range(2):  # at first all gradients but those of the zeros are nothing
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            context = parts.modules["text_encoder"](torch.arange(77)[None] % 50).last_hidden_state
            parts.denoiser(
                torch.ones(1, 4, 8, 8), torch.tensor([5]), context
            ).sample.square().mean().backward()
        optimizer.step()
    gradients = [p.grad for group in groups for p in group.parameters]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.9 * len(gradients)


REFUSED = [
    (LohaSection(tucker=True), "Tucker convolutions.*no convolutions"),
    (LokrSection(decompose_both=True), "Divide both factors.*no effect"),
    (LokrSection(rank_patterns=["*: 4"]), "Other ranks.*no effect"),
    (LokrSection(tucker=True, targets="with convolutions"), "Tucker convolutions.*no effect"),
    (LokrSection(factor=1), "Factor is 1"),
    (LokrSection(factor=0), "Factor is 0"),
]


@pytest.mark.parametrize(("section", "words"), REFUSED)
def test_what_has_no_effect_is_refused_before_anything_loads(base: Path, section: Any, words: str) -> None:
    facts = families.recognise(BaseSection(path=str(base)))
    with pytest.raises(UserError, match=words) as caught:
        method_of(section.kind).suits(section, facts)
    assert caught.value.path.startswith("method.") and caught.value.hint


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_token_table_has_no_such_adapter(base: Path, kind: str) -> None:
    method = method_of(kind)
    section = method.Section(targets="own list", own_targets=["text_encoder.*token_embedding"])
    with pytest.raises(UserError, match="token_embedding"):
        method.attach(load(base), section, RATES)


@pytest.mark.parametrize(("kind", "args"), [("loha", {"algo": "loha"}), ("lokr", {"full_matrix": "True"})])
def test_the_file_says_what_made_it(trainer: Trainer, kind: str, args: dict[str, str]) -> None:
    import json

    trainer.values |= {"method": {"kind": kind, "targets": "attention"}, "sample": {"prompts": []}}
    trainer.values |= {"train": {"steps": "1", "resolution": 64}, "checkpoint": {"every": "0"}}
    folder = trainer.new()
    (end,) = [event for event in trainer.run(folder) if isinstance(event, Finished)]
    said = read_header(folder.path / end.path).metadata
    assert said["ss_network_module"] == "lycoris.kohya"
    told = json.loads(said["ss_network_args"])
    assert args.items() <= told.items() and told["algo"] == kind and told["preset"] == "attn-only"
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert re.fullmatch(r"[\d.]+", said["ss_network_alpha"]) and said["ss_network_dim"].isdecimal()
