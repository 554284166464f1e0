"""Full and partial fine-tuning: only what is chosen changes, and both exports are the trained model whole."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sd15
import tiny
import torch
from conftest import DRAWING, Killed, Trainer
from safetensors import safe_open
from safetensors.torch import load_file

from sdtrainer import families, methods, planner, result
from sdtrainer.events import Event, Finished, RolledBack, Sampled, Saved
from sdtrainer.families import ASSETS, BaseSection
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


# -- files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as SD2's text encoder, so that files take its layout; predicts v."""
    return tiny.make_base(tmp_path_factory.mktemp("wide") / "base", "v_prediction", width=1024)


@pytest.fixture
def base_like(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    return lambda name: ASSETS / "starter-model" if name == "starter" else request.getfixturevalue(name)


@pytest.mark.parametrize("layout", ["webui", "diffusers"])
@pytest.mark.parametrize("model", ["base", "wide", "starter"])
def test_a_file_put_on_a_fresh_base_is_the_trained_model(
    base_like: Callable[[str], Path], tmp_path: Path, model: str, layout: str
) -> None:
    path = base_like(model)
    parts = attached(path, EVERYTHING)
    (file,) = METHOD.export(parts, EVERYTHING, order(tmp_path, formats=(layout,)))
    assert methods.recognise(file) is METHOD
    fresh = load(path)
    assert not torch.allclose(output(fresh), output(parts), atol=1e-2)
    METHOD.put_on(fresh, file, 1.0)
    found, expected = weights(fresh), weights(parts)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(output(fresh), output(parts))


def test_strength_goes_from_the_base_to_the_trained_model(base: Path, tmp_path: Path) -> None:
    (file,) = METHOD.export(attached(base, EVERYTHING), EVERYTHING, order(tmp_path))
    at = {}
    for strength in (0.0, 0.5, 1.0):
        parts = load(base)
        METHOD.put_on(parts, file, strength)
        at[strength] = weights(parts)
    before = weights(load(base))
    for name, value in before.items():
        assert torch.equal(at[0.0][name], value)
        torch.testing.assert_close(at[0.5][name], (at[0.0][name] + at[1.0][name]) / 2)


@pytest.mark.parametrize("layout", ["webui", "diffusers"])
def test_a_model_that_does_not_fit_is_refused(base: Path, tmp_path: Path, layout: str) -> None:
    (file,) = METHOD.export(load(base), EVERYTHING, order(tmp_path, formats=(layout,)))
    other = load(tiny.make_base(tmp_path / "other", width=64))
    before = weights(other)
    with pytest.raises(UserError, match="does not fit"):
        METHOD.put_on(other, file, 1.0)
    after = weights(other)
    assert all(torch.equal(before[name], after[name]) for name in before), "nothing is half put on"


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("layout", ["webui", "diffusers"])
def test_files_are_stored_as_chosen_and_as_large_as_promised(
    base: Path, tmp_path: Path, precision: Any, layout: str
) -> None:
    parts = attached(base, EVERYTHING)
    (file,) = METHOD.export(parts, EVERYTHING, order(tmp_path, precision, (layout,)))
    stored = [file] if file.is_file() else sorted(file.rglob("*.safetensors"))
    tensors = [t for f in stored for t in load_file(f).values() if t.is_floating_point()]
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    assert tensors and {t.dtype for t in tensors} == {dtype}
    size = sum(f.stat().st_size for f in stored)
    assert METHOD.exported_bytes(parts, EVERYTHING, precision) == pytest.approx(size, rel=0.15)


def test_the_folder_loads_as_a_base_and_in_diffusers(wide: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    parts = attached(wide, EVERYTHING)
    (folder,) = METHOD.export(parts, EVERYTHING, order(tmp_path, formats=("diffusers",)))
    ours = load(folder)
    assert ours.facts.prediction_type == "v_prediction"
    assert torch.equal(output(ours), output(parts))
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    ids = theirs.tokenizer(["a zib disc"], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, families.family_of(parts.facts).tokenize(parts, ["a zib disc"], 1)[ENCODER])
    assert torch.equal(theirs.unet.state_dict()["conv_in.weight"], parts.denoiser.conv_in.weight)
    assert theirs.scheduler.config.prediction_type == "v_prediction" and theirs.safety_checker is None
    text = theirs.text_encoder.state_dict()
    assert all(torch.equal(v, text[k]) for k, v in parts.modules[ENCODER].state_dict().items())


def test_the_folder_can_be_read_by_older_programs(base: Path, tmp_path: Path) -> None:
    """Names with text_model. for transformers 4, vocab.json and merges.txt; no path of this disk."""
    (folder,) = METHOD.export(load(base), EVERYTHING, order(tmp_path, formats=("diffusers",)))
    keys = load_file(folder / "text_encoder" / "model.safetensors")
    assert keys and all(key.startswith("text_model.") for key in keys)
    files = {p.name for p in (folder / "tokenizer").iterdir()}
    assert {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"} <= files
    texts = [p.read_text(encoding="utf-8") for p in folder.rglob("*.json")]
    assert texts and not any(str(tmp_path.parent) in text or str(base) in text for text in texts)


def test_a_folder_is_whole_or_the_old_one(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    parts = load(base)
    (folder,) = METHOD.export(parts, EVERYTHING, order(tmp_path, formats=("diffusers",)))
    before = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    broken = attached(base, EVERYTHING)
    broken.modules[VAE].quant_conv.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        METHOD.export(broken, EVERYTHING, order(tmp_path, formats=("diffusers",)))
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    METHOD.export(attached(base, EVERYTHING), EVERYTHING, order(tmp_path, formats=("diffusers",)))
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["result-diffusers"]


def test_the_file_carries_what_loads_it_again(base: Path, tmp_path: Path) -> None:
    (file,) = METHOD.export(load(base), EVERYTHING, order(tmp_path))
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    configs, tokenizers = whole_model.inside(metadata)
    assert metadata["ss_note"] == "test"
    assert configs is not None and tokenizers.keys() == {"text_encoder"}
    assert configs[DENOISER]["block_out_channels"] == [16, 32]
    assert configs["scheduler"]["prediction_type"] == "epsilon"
    assert "a</w>" in json.loads(tokenizers["text_encoder"]["vocab.json"])
    assert str(base) not in json.dumps(dict(metadata))


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
