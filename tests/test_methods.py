"""What every method of fine-tuning keeps, one sentence a test, on the tiny model and for all of METHODS."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import Killed, Trainer

from sdtrainer import diffusion, families, methods, result
from sdtrainer.config import build
from sdtrainer.events import Finished, Saved
from sdtrainer.families import FAMILIES, BaseSection
from sdtrainer.formats.readers import readers_of
from sdtrainer.methods import METHODS, method_of
from sdtrainer.seams import ExportOrder, LearningRates, Method, Noised, ParamGroup, Parts
from sdtrainer.section import Section, UserError
from sdtrainer.training import checkpoint

RATES = LearningRates(1e-2, 5e-3)
OWN_LIST = "own list"
LAYERS = {
    "targets": OWN_LIST,
    "own_targets": ["*attn1.to_q", "*attn2.to_k", "*proj_in", "*conv1", "*shortcut", "text_encoder.*fc1"]
    + ["text_encoder_2.*q_proj"],
}
OF_SD3 = ["*attn.to_q", "*attn.add_k_proj", "*ff_context.net.2", "*norm1.linear", "pos_embed.proj"]
OF_SD3 += ["text_encoder.*fc1", "text_encoder_2.*q_proj"]
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2} | LAYERS,
    "loha": {"rank": 2} | LAYERS,
    "lokr": {"factor": 4} | LAYERS,
    "full": {"train_text_encoder": True},
    "hypernetwork": {"widths": "text"},
    "textual_inversion": {"tokens": ["<zib>"], "init": ["a disc"]},
}
"""Of each method what makes the test cover most of it; the defaults of those not named."""

WITHOUT = {"sdxl": ("hypernetwork",), "sd3": ("hypernetwork",)}
"""Methods that a family does not have."""
CASES = [(f, kind) for f in FAMILIES for kind in METHODS if kind not in WITHOUT.get(f, ())]
LAYOUTS = [(family, kind, layout) for family, kind in CASES for layout in method_of(kind).formats]

EVERY_METHOD = pytest.mark.parametrize("kind", METHODS)
ON_EVERY_FAMILY = pytest.mark.parametrize(("model", "kind"), CASES, indirect=["model"])


@pytest.fixture
def model(request: pytest.FixtureRequest, base: Path, sdxl: Path, sd3: Path) -> Path:
    return {"sd": base, "sdxl": sdxl, "sd3": sd3}[request.param]


def section_of(kind: str, family: str = "sd") -> Section:
    settings = SETTINGS.get(kind, {})
    if family == "sd3" and settings.get("targets") == OWN_LIST:
        settings = settings | {"own_targets": OF_SD3}
    return build({"method": {"kind": kind} | settings}).method


def load(base: Path) -> Parts:
    """A fresh copy of the base model."""
    return copy.deepcopy(_loaded(base))


@cache
def _loaded(base: Path) -> Parts:
    facts = families.recognise(BaseSection(path=str(base)))
    return families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))


def attached(base: Path, kind: str) -> tuple[Parts, Method, Section, list[ParamGroup]]:
    parts, method = load(base), method_of(kind)
    section = section_of(kind, parts.facts.family)
    return parts, method, section, method.attach(parts, section, RATES)


def moved(groups: Iterable[ParamGroup]) -> None:
    """Change everything trainable, as training would."""
    generator = torch.Generator().manual_seed(1)
    for group in groups:
        for parameter in group.parameters:
            step = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.1 * parameter.data.std().clamp(0.1) * step if parameter.numel() > 1 else 0.1


def prediction(parts: Parts, caption: str = "a disc") -> torch.Tensor:
    """What the denoiser says to a fixed input and caption."""
    family = families.family_of(parts.facts)
    noisy = torch.randn(2, parts.facts.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = family.tokenize(parts, [caption, "zib"], 1)
    said = family.encode_text(parts, tokens, 0, torch.zeros(2, 6))
    times = torch.tensor([100, 900])
    return family.predict(parts, Noised(noisy, times, noisy, torch.ones(2)), said)


def caption(method: Method, section: Section) -> str:
    return " ".join(("a disc", *method.words(section)))


def state(parts: Parts) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in parts.modules.items()
        for name, tensor in module.state_dict().items()
    }


def exported(kind: str, folder: Path, parts: Parts, section: Section, layout: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    order = ExportOrder(folder, "result", "fp32", (layout,), {"ss_note": "test"})  # type: ignore[arg-type]
    return method_of(kind).export(parts, section, order)


@ON_EVERY_FAMILY
def test_attaching_changes_nothing_where_that_is_promised(model: Path, kind: str) -> None:
    with torch.no_grad():
        before = prediction(load(model))
        parts, method, section, groups = attached(model, kind)
        if method.starts_as_base:
            assert torch.equal(before, prediction(parts))
        moved(groups)
        changed = (prediction(parts, caption(method, section)) - before).abs().max()
    assert changed > 1e-4, "training has no effect"


@ON_EVERY_FAMILY
def test_only_what_is_promised_changes_in_training(model: Path, kind: str) -> None:
    parts, method, section, groups = attached(model, kind)
    trained = {id(p) for group in groups for p in group.parameters}
    modules = parts.modules
    assert trained == {id(p) for m in modules.values() for p in m.parameters() if p.requires_grad}
    holding = {part for part, m in modules.items() if any(p.requires_grad for p in m.parameters())}
    assert holding == set(method.trains(section, parts.facts))
    assert all(p.dtype is torch.float32 for group in groups for p in group.parameters)
    rest = [p for module in modules.values() for p in module.parameters() if id(p) not in trained]
    before = [p.clone() for p in rest]
    optimizer = torch.optim.AdamW([{"params": list(g.parameters), "lr": g.lr} for g in groups])
    losses = []
    for _ in range(6):
        loss = (prediction(parts, caption(method, section)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(old, new) for old, new in zip(before, rest, strict=True))


@ON_EVERY_FAMILY
def test_detaching_restores_the_base_exactly(model: Path, kind: str) -> None:
    parts, method = load(model), method_of(kind)
    section = section_of(kind, parts.facts.family)
    before = state(parts)
    types = [(type(m), set(vars(m))) for module in parts.modules.values() for m in module.modules()]
    method.attach(parts, section, RATES)
    method.detach(parts, section)
    after = state(parts)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert types == [(type(m), set(vars(m))) for module in parts.modules.values() for m in module.modules()]
    assert not any(p.requires_grad for m in parts.modules.values() for p in m.parameters())
    method.attach(parts, section, RATES)


@ON_EVERY_FAMILY
def test_the_trained_model_is_counted_alike_without_weights(model: Path, kind: str) -> None:
    parts, method, section, groups = attached(model, kind)
    modules = families.family_of(parts.facts).skeleton(parts.facts)
    for module in modules.values():
        module.requires_grad_(False)
    bare = Parts(parts.facts, modules, {}, diffusion.Schedule(torch.empty(0)))
    with torch.device("meta"):
        counted = method.attach(bare, section, RATES)
    assert [[p.shape for p in g.parameters] for g in counted] == [
        [p.shape for p in g.parameters] for g in groups
    ]
    assert method.exported_bytes(bare, section, "fp16") == method.exported_bytes(parts, section, "fp16") > 0


@pytest.mark.parametrize(("model", "kind", "layout"), LAYOUTS, indirect=["model"])
def test_an_exported_file_put_on_the_base_is_the_trained_model(
    model: Path, tmp_path: Path, kind: str, layout: str
) -> None:
    parts, method, section, groups = attached(model, kind)
    moved(groups)
    files = exported(kind, tmp_path, parts, section, layout)
    assert [file.name for file in files] == list(method.outputs(section, "result", (layout,)))
    fresh = load(model)
    assert methods.recognise(files[0]) is method
    method.put_on(fresh, files[0], 1.0)
    with torch.no_grad():
        said = caption(method, section)
        again = said
        if layout == "pt" and len(parts.facts.encoders) > 1:  # holds no word: the file's name is it
            again = said.replace(section.tokens[0], files[0].stem)  # type: ignore[attr-defined]
        torch.testing.assert_close(prediction(fresh, again), prediction(parts, said), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "kind", "layout"), LAYOUTS)
def test_every_file_says_which_program_reads_it(family: str, kind: str, layout: str) -> None:
    rows = readers_of(kind, family, layout)  # type: ignore[arg-type]
    assert [row.program for row in rows] == ["A1111 / Forge", "ComfyUI", "diffusers"]
    assert all(row.how for row in rows)


@ON_EVERY_FAMILY
def test_a_file_of_another_base_is_refused_and_nothing_is_changed(
    model: Path, tmp_path: Path, kind: str
) -> None:
    other = tmp_path / "wide"
    {
        "sd": lambda: tiny.make_base(other, width=48),
        "sdxl": lambda: tiny.make_sdxl(other, (40, 56)),
        "sd3": lambda: tiny.make_sd3(other, (20, 28)),
    }[families.recognise(BaseSection(path=str(model))).family]()
    parts, method, section, _ = attached(other, kind)
    file = exported(kind, tmp_path / "out", parts, section, method.formats[0])[0]
    mine = load(model)
    before = state(mine)
    with pytest.raises(UserError) as caught:
        method.put_on(mine, file, 1.0)
    assert caught.value.hint
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(mine).items())


@EVERY_METHOD
def test_stopping_and_resuming_is_as_if_it_had_never_stopped(trainer: Trainer, kind: str) -> None:
    fewer = {"targets": "attention", "dropout": 0.1} if "targets" in SETTINGS.get(kind, {}) else {}
    trainer.values |= {
        "method": {"kind": kind} | SETTINGS.get(kind, {}) | fewer,
        "train": {"steps": "2", "resolution": 64},
        "sample": {"prompts": []},
        "checkpoint": {"every": "1"},
    }
    trainer.values["data"] = {"folder": trainer.values["data"]["folder"]}
    whole, halved = trainer.new(run__name="whole"), trainer.new(run__name="halved")
    (end,) = [event for event in trainer.run(whole) if isinstance(event, Finished)]

    def kill(event: Any, control: Any) -> None:
        if isinstance(event, Saved):
            raise Killed

    trainer.run(halved, on_event=kill)
    trainer.run(halved)
    first, second = (checkpoint.saved(folder.checkpoints)[-1] for folder in (whole, halved))
    assert checkpoint.step_of(first) == checkpoint.step_of(second) == 2
    assert (first / "weights.safetensors").read_bytes() == (second / "weights.safetensors").read_bytes()
    if (whole.path / end.path).suffix == ".safetensors":
        assert result.config_inside(whole.path / end.path) is not None


@EVERY_METHOD
def test_its_settings_and_card_are_complete(kind: str) -> None:
    method = method_of(kind)
    assert method.kind == kind == section_of(kind).kind  # type: ignore[attr-defined]
    assert method.title and method.formats and method.card.about.endswith(".")
    assert all((method.card.pros, method.card.cons, method.card.uses, method.card.size))
    assert all(lrs.denoiser > 0 and lrs.text_encoder > 0 for lrs in method.lrs.values())
    assert json.dumps(method.provenance(section_of(kind)))
