"""Full and partial fine-tuning: only what is chosen changes, and both exports are the trained model whole."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import sd15
import torch
from conftest import DRAWING, Killed, Trainer
from safetensors.torch import load_file

from sdtrainer import families, planner, result
from sdtrainer.events import Event, Finished, RolledBack, Sampled, Saved
from sdtrainer.families import BaseSection
from sdtrainer.formats import whole_model
from sdtrainer.hardware import CPU_ONLY, imagined
from sdtrainer.memory import estimate
from sdtrainer.methods.full import METHOD, FullSection
from sdtrainer.seams import DENOISER, VAE, Batch, ExportOrder, Latents, LearningRates, Parts
from sdtrainer.section import UserError
from sdtrainer.training import checkpoint, setup
from sdtrainer.training.looking import requests
from sdtrainer.training.step import TrainStep
from sdtrainer.workspace import RunFolder

ENCODER = "text_encoder"
RATES = LearningRates(1e-3, 5e-4)
EVERYTHING = FullSection(train_text_encoder=True)
KINDS: dict[str, FullSection] = {
    "everything": EVERYTHING,
    "attention": FullSection(layers="attention", train_text_encoder=True),
    "cross-attention": FullSection(layers="cross-attention"),
    "norms and biases": FullSection(layers="norms and biases", train_text_encoder=True),
    "own list": FullSection(layers="own list", own_layers=["*attn2.to_k", "text_encoder.*token_embedding"]),
    "a block": FullSection(blocks=["up"]),
}


def load(base: Path, dtype: torch.dtype = torch.float32) -> Parts:
    facts = families.recognise(BaseSection(path=str(base)))
    return families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, dtype))


def weights(parts: Parts) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part, module in parts.modules.items()
        for name, value in module.state_dict().items()
    }


def trained_names(parts: Parts) -> set[str]:
    return {
        f"{part}.{name}"
        for part, module in parts.modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def attached(base: Path, section: FullSection) -> Parts:
    """Parts whose chosen weights have moved, as after training."""
    parts = load(base)
    groups = METHOD.attach(parts, section, RATES)
    generator = torch.Generator().manual_seed(1)
    for group in groups:
        for parameter in group.parameters:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return parts


def output(parts: Parts) -> torch.Tensor:
    """What the denoiser says to a fixed input and caption, and the VAE to a fixed picture."""
    family = families.family_of(parts.facts)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    pixels = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    with torch.no_grad():
        said = family.encode_text(parts, family.tokenize(parts, ["a disc", "zib"], 1), 0, torch.zeros(2, 6))
        noise = parts.denoiser(noisy, torch.tensor([100, 900]), said.prompt_embeds).sample
        return noise + family.encode_images(parts, pixels).mean


def order(folder: Path, precision: str = "fp32", formats: tuple[str, ...] = ("webui",)) -> ExportOrder:
    return ExportOrder(folder, "result", precision, formats, {"ss_note": "test"})  # type: ignore[arg-type]


# -- what is trained --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "trained_as"),
    [(torch.float32, "fp32"), (torch.bfloat16, "fp32"), (torch.float16, "fp32"), (torch.bfloat16, "bf16")],
)
def test_detaching_gives_the_base_back_to_the_bit(
    base: Path, trainer: Trainer, dtype: torch.dtype, trained_as: Any
) -> None:
    parts = load(base, dtype)
    before, kinds = weights(parts), [type(m) for m in parts.denoiser.modules()]
    plan = dataclasses.replace(planned(trainer, CPU_ONLY, EVERYTHING), trained_as=trained_as)
    setup.attach(METHOD, parts, plan)
    METHOD.detach(parts, EVERYTHING)
    after = weights(parts)
    assert kinds == [type(m) for m in parts.denoiser.modules()] and not trained_names(parts)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) and before[k].dtype is after[k].dtype for k in before)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_chosen_changes_in_training(base: Path, trainer: Trainer, kind: str) -> None:
    section = KINDS[kind]
    plan = planned(trainer, CPU_ONLY, section, optim__weight_decay=0.1)
    parts, before = load(base), weights(load(base))
    groups = METHOD.attach(parts, section, RATES)
    expected = trained_names(parts)
    optimizer = torch.optim.AdamW([p for g in groups for p in g.parameters], lr=0.01)
    step(plan, parts)
    optimizer.step()
    changed = {name for name, value in weights(parts).items() if not torch.equal(value, before[name])}
    assert changed == expected != set()
    assert not any(name.startswith(VAE) for name in changed)
    assert tuple(p for p in parts.facts.parts if any(n.startswith(f"{p}.") for n in changed)) == (
        METHOD.trains(section, parts.facts)
    )


@pytest.mark.parametrize(
    ("kind", "has", "lacks"),
    [("attention", ".attn1.", "resnets"), ("cross-attention", ".attn2.", ".attn1."),
     ("norms and biases", "norm_out.weight", "conv_in.weight"), ("own list", "attn2.to_k", "to_v"),
     ("a block", "denoiser.up_blocks", "denoiser.down_blocks")],
)  # fmt: skip
def test_names_choose_weights(base: Path, kind: str, has: str, lacks: str) -> None:
    parts = load(base)
    METHOD.attach(parts, KINDS[kind], RATES)
    names = trained_names(parts)
    assert any(has in name for name in names) and not any(lacks in name for name in names)


def test_norms_and_biases_are_all_the_vectors(base: Path) -> None:
    """In these models every tensor of one dimension is a bias or the scale of a norm, and the reverse."""
    parts = load(base)
    METHOD.attach(parts, KINDS["norms and biases"], RATES)
    for part in (DENOISER, ENCODER):
        for name, parameter in parts.modules[part].named_parameters():
            assert parameter.requires_grad == (parameter.ndim == 1), name


def test_trained_weights_are_fp32_and_the_others_stay_in_their_precision(
    base: Path, trainer: Trainer
) -> None:
    parts = load(base, torch.bfloat16)
    setup.attach(METHOD, parts, planned(trainer, CPU_ONLY, KINDS["cross-attention"]))
    kinds = {(p.requires_grad, p.dtype) for m in parts.modules.values() for p in m.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


# -- learning rates ---------------------------------------------------------------------------------


def test_each_part_has_its_rate_and_lines_change_it(base: Path) -> None:
    factors = ["down_blocks*: 0.5", "*attn2*: 2", "text_encoder.*token_embedding: 0.1"]
    section = FullSection(train_text_encoder=True, lr_factors=factors)
    parts = load(base)
    groups = METHOD.attach(parts, section, RATES)
    assert {g.name: g.lr for g in groups} == pytest.approx(
        {"denoiser": 1e-3, "denoiser down_blocks*": 5e-4, "denoiser *attn2*": 2e-3,
         "text encoder": 5e-4, "text encoder *token_embedding": 5e-5}
    )  # fmt: skip
    listed = [id(p) for g in groups for p in g.parameters]
    assert len(listed) == len(set(listed)) == len(trained_names(parts))
    down = next(g for g in groups if g.name.endswith("down_blocks*"))
    inside = {id(p) for n, p in parts.denoiser.named_parameters() if n.startswith("down_blocks")}
    assert {id(p) for p in down.parameters} == inside, "the first line that fits counts"


@pytest.mark.parametrize(
    ("changes", "path"),
    [({"layers": "own list"}, "own_layers"), ({"blocks": ["left"]}, "blocks"), ({"blocks": []}, "blocks"),
     ({"lr_factors": ["*attn2*"]}, "lr_factors"), ({"lr_factors": ["*attn2*: 0"]}, "lr_factors"),
     ({"lr_factors": ["*attn2*: -1"]}, "lr_factors")],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_loads(
    trainer: Trainer, changes: dict[str, Any], path: str
) -> None:
    with pytest.raises(UserError) as caught:
        planned(trainer, CPU_ONLY, FullSection(**changes))
    assert caught.value.path == f"method.{path}"


@pytest.mark.parametrize(
    "changes",
    [{"layers": "own list", "own_layers": ["*attn2*", "*no_such*"]}, {"lr_factors": ["*no_such*: 2"]},
     {"layers": "cross-attention", "lr_factors": ["*no_such*: 2"]}],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_is_named_and_nothing_is_touched(
    base: Path, changes: dict[str, Any]
) -> None:
    parts = load(base)
    with pytest.raises(UserError, match="no_such"):
        METHOD.attach(parts, FullSection(**changes), RATES)
    assert not trained_names(parts)


# -- memory -----------------------------------------------------------------------------------------


def planned(trainer: Trainer, machine: Any, section: FullSection, **changes: Any) -> Any:
    values = {**trainer.values, "method": section.model_dump()}
    config = Trainer(trainer.workspace, values).config(**changes)
    return planner.draft(config, trainer.workspace, machine).plan


def step(plan: Any, parts: Parts) -> None:
    """One forward and backward pass on random latents."""
    family = families.family_of(parts.facts)
    latents = Latents(torch.randn(2, 4, 8, 8), torch.ones(2, 4, 8, 8))
    tokens = family.tokenize(parts, ["a zib", "a disc"], 1)
    batch = Batch(torch.ones(2), torch.zeros(2, 6), latents=latents, tokens=tokens)
    TrainStep(family, parts, plan)(batch, torch.Generator()).mean().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_the_ledger_counts_the_bytes_that_lie_in_memory(base: Path, trainer: Trainer, kind: str) -> None:
    """On a card frozen weights are bf16 and trained ones fp32, in the place of the base's."""
    section = KINDS[kind]
    plan = planned(trainer, imagined(24), section)
    ledger = estimate(plan)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    placed = {part: dtypes[plan.place(part, "train").precision] for part in plan.facts.parts}
    parts = families.family_of(plan.facts).load(plan.facts, plan.facts.parts, placed)
    setup.attach(METHOD, parts, plan)
    rows = {(r.part, r.phase): r.bytes for r in ledger.rows if r.what == "weights"}
    for part, module in parts.modules.items():
        assert rows[part, "sample"] == sum(p.nbytes for p in module.parameters()), part
    cached = {part: size for (part, phase), size in rows.items() if phase == "cache"}
    assert cached == {
        part: placed[part].itemsize * sum(p.numel() for p in parts.modules[part].parameters())
        for part in cached
    }
    assert DENOISER not in cached and len(cached) == 1, "VAE and text encoder take turns"
    assert ledger.trained == sum(
        p.numel() for m in parts.modules.values() for p in m.parameters() if p.requires_grad
    )


def test_all_of_stable_diffusion_1_is_counted_once(trainer: Trainer, tmp_path: Path) -> None:
    published = str(sd15.write(tmp_path / "sd15"))
    ledger = estimate(planned(trainer, imagined(24), FullSection(), base__path=published))
    train = {r.what: r.bytes for r in ledger.rows if (r.part, r.phase) == (DENOISER, "train")}
    assert ledger.trained == sd15.UNET and train["weights"] == train["gradients"] == 4 * sd15.UNET
    numbers = sd15.UNET + sd15.VAE + sd15.TEXT_ENCODER
    assert 4 * numbers < ledger.exported_bytes < 4 * numbers + 300_000  # the tests export fp32


# -- runs -------------------------------------------------------------------------------------------


def full(trainer: Trainer, **section: Any) -> Trainer:
    return Trainer(trainer.workspace, trainer.values | {"method": {"kind": "full", **section}})


def exported(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.output / "test.safetensors")


def test_partial_training_resumes_as_if_uninterrupted(trainer: Trainer) -> None:
    """With a running average, a text encoder, and rates of their own; killed once on the way."""
    runs = full(trainer, layers="norms and biases", train_text_encoder=True, lr_factors=["up_blocks*: 2"])
    settings: dict[str, Any] = {"optim__ema": True, "sample__prompts": [], "train__steps": "6"}
    whole, cut = runs.new(**settings), runs.new(**settings)
    runs.run(whole)

    def die(event: Event, control: Any) -> None:
        if isinstance(event, Saved) and event.step == 4:
            raise Killed

    runs.run(cut, on_event=die)
    assert isinstance(runs.run(cut)[-1], Finished)
    one, other = exported(whole), exported(cut)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_broken_batch_is_left_out_of_every_weight(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdtrainer.training import feed

    honest = feed.Feed.batch

    def poisoned(self: feed.Feed, number: int) -> Batch:
        batch = honest(self, number)
        return dataclasses.replace(batch, weight=batch.weight * math.inf) if number == 3 else batch

    monkeypatch.setattr(feed.Feed, "batch", poisoned)
    runs = full(trainer)
    folder = runs.new(sample__prompts=[], train__steps="6")
    happened = runs.run(folder)
    assert [e.step for e in happened if isinstance(e, RolledBack)] == [3]
    assert all(t.isfinite().all() for t in exported(folder).values())


def test_the_average_is_exported_and_draws_what_the_last_picture_shows(trainer: Trainer, base: Path) -> None:
    from PIL import Image, ImageChops

    runs = full(trainer, train_text_encoder=True)
    folder = runs.new(
        optim__ema=True,
        optim__ema_decay=0.5,
        export__formats=["webui", "diffusers"],
        train__steps="6",
        **DRAWING,
    )
    happened = runs.run(folder)
    saved = load_file(checkpoint.saved(folder.checkpoints)[-1] / "weights.safetensors")
    states = whole_model.read_states(folder.output / "test.safetensors", load(base).facts.config)
    raw = saved["denoiser.conv_in.weight"]
    assert not torch.equal(states[DENOISER]["conv_in.weight"], raw), "the average lags behind"
    picture = [e for e in happened if isinstance(e, Sampled)][-1]
    request = requests(planner.load(folder).plan)[0]  # type: ignore[union-attr]
    for name in ("test.safetensors", "test-diffusers"):
        drawn = result.sampler(BaseSection(path=str(base)), folder.output / name).draw(request)
        kept = Image.open(folder.path / picture.path)
        assert max(high for _, high in ImageChops.difference(drawn, kept).getextrema()) <= 1


def test_frozen_weights_are_exported_untouched(trainer: Trainer, base: Path) -> None:
    runs = full(trainer, layers="cross-attention")
    folder = runs.new(sample__prompts=[], train__steps="3")
    runs.run(folder)
    before = load(base)
    states = whole_model.read_states(folder.output / "test.safetensors", before.facts.config)
    for part, state in whole_model.states_of(before).items():
        changed = {name for name, value in state.items() if not torch.equal(value, states[part][name])}
        assert bool(changed) == (part == DENOISER) and all(".attn2." in name for name in changed)


@pytest.mark.parametrize("kind", ["everything", "norms and biases"])
def test_half_precision_keeps_steps_that_it_would_round_away(base: Path, trainer: Trainer, kind: str) -> None:
    """Computed in bf16, where frozen and trained weights of one layer meet in two precisions."""
    parts = load(base, torch.bfloat16)
    parts.modules[VAE].float()
    plan = planned(trainer, CPU_ONLY, KINDS[kind])
    groups = setup.attach(METHOD, parts, plan)
    before = weights(parts)
    with torch.autocast("cpu", torch.bfloat16):
        step(plan, parts)
    torch.optim.AdamW([p for g in groups for p in g.parameters], lr=1e-6).step()
    moved = {k: v for k, v in weights(parts).items() if not torch.equal(v, before[k])}
    assert moved.keys() == trained_names(parts)
    assert any(not torch.equal(v, v.bfloat16().float()) for v in moved.values())
