"""Textual inversion: a word gets vectors of its own, and every reader gets what was learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DRAWING, Trainer

from sdtrainer import families, planner
from sdtrainer.events import Finished, Stepped, Validated
from sdtrainer.families import BaseSection
from sdtrainer.formats import legacy_pt
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.methods.learnt_rows import LearntRows, mean_norm
from sdtrainer.methods.textual_inversion import METHOD, TextualInversionSection
from sdtrainer.sample import Request
from sdtrainer.seams import DENOISER, Batch, ExportOrder, Latents, LearningRates, Parts
from sdtrainer.section import UserError
from sdtrainer.training.setup import decide, fingerprint
from sdtrainer.training.step import TrainStep

ENCODER = "text_encoder"
RATES = LearningRates(1e-3, 5e-4)
TWO = TextualInversionSection(tokens=["<zib>"], vectors=2, init=["red cat"])
SEVERAL = TextualInversionSection(tokens=["<zib>", "<zob>"], vectors=3, init=["a", "random"])
LAYOUTS = ("webui", "pt", "diffusers")
VECTORS = torch.arange(64.0).reshape(2, 32) / 64


def load(base: Path) -> Parts:
    facts = families.recognise(BaseSection(path=str(base)))
    return families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, torch.float32))


def attached(base: Path, section: TextualInversionSection) -> Parts:
    """Parts whose words hold random numbers, as after training."""
    parts = load(base)
    METHOD.attach(parts, section, RATES)
    torch.manual_seed(1)
    torch.nn.init.normal_(learnt(parts).rows, std=0.5)
    return parts


def learnt(parts: Parts) -> LearntRows:
    return parts.modules[ENCODER].get_input_embeddings()


def hidden(parts: Parts, *texts: str) -> torch.Tensor:
    """What the text encoder makes of texts."""
    family = families.family_of(parts.facts)
    with torch.no_grad():
        tokens = family.tokenize(parts, texts, 1)
        return family.encode_text(parts, tokens, 0, torch.zeros(len(texts), 6)).prompt_embeds


def order(folder: Path, *layouts: str) -> ExportOrder:
    metadata = {"ss_steps": "12", "ss_sd_model_name": "base"}
    return ExportOrder(folder, "result", "fp16", layouts or ("webui",), metadata)


# -- attaching ----------------------------------------------------------------------------------------


def test_a_text_without_the_word_means_what_it_meant(base: Path) -> None:
    before = hidden(load(base), "a disc", "")
    assert torch.equal(before, hidden(attached(base, SEVERAL), "a disc", ""))


def test_the_word_begins_as_the_text_it_is_given(base: Path) -> None:
    parts = load(base)
    spelled = TextualInversionSection(tokens=["<zib>"], vectors=3, init=["cat"])
    METHOD.attach(parts, spelled, RATES)
    torch.testing.assert_close(hidden(parts, "a <zib> disc"), hidden(load(base), "a cat disc"))


def test_a_name_of_two_words_begins_two_vectors(base: Path) -> None:
    parts = load(base)
    METHOD.attach(parts, TextualInversionSection(tokens=["<zib>"], vectors=2, init=["x y"]), RATES)
    family, table = families.family_of(parts.facts), learnt(parts).table.weight
    first, second = family.tokenize(parts, ["x y"], 1)[ENCODER][0, 1:3].tolist()
    assert first != second
    assert torch.equal(learnt(parts).rows, table[[first, second]])


@pytest.mark.parametrize("init", ["random", "random words"])
def test_chance_begins_within_the_range_of_words_and_the_same_for_a_seed(base: Path, init: str) -> None:
    rows = []
    for _ in range(2):
        parts = load(base)
        torch.manual_seed(3)
        METHOD.attach(parts, TextualInversionSection(vectors=20, init=[init]), RATES)
        rows.append(learnt(parts).rows.detach())
    assert torch.equal(*rows)
    assert rows[0].std() == pytest.approx(learnt(parts).weight.std().item(), rel=0.2)
    assert len(rows[0].unique(dim=0)) > 5


def test_the_optimizer_sees_the_words_numbers_alone(base: Path) -> None:
    parts = load(base)
    (group,) = METHOD.attach(parts, SEVERAL, RATES)
    assert (group.name, group.lr) == ("text encoder", 5e-4)
    assert [tuple(p.shape) for p in group.parameters] == [(2 * 3, 32)]
    trained = [n for m in parts.modules.values() for n, p in m.named_parameters() if p.requires_grad]
    assert len(trained) == 1 and trained[0].endswith("token_embedding.rows")


def test_attached_and_detached_the_base_is_as_it_was(base: Path) -> None:
    parts, fresh = load(base), load(base)
    tokenizer = parts.tokenizers[ENCODER]
    METHOD.attach(parts, SEVERAL, RATES)
    assert "zib" not in str(tokenizer.get_added_vocab()) and len(tokenizer) == len(fresh.tokenizers[ENCODER])
    METHOD.detach(parts, SEVERAL)
    assert parts.tokenizers[ENCODER] is tokenizer and parts.placeholders == {}
    for name, module in parts.modules.items():
        assert [(n, type(m)) for n, m in module.named_modules()] == [
            (n, type(m)) for n, m in fresh.modules[name].named_modules()
        ]
        assert fingerprint(module) == fingerprint(fresh.modules[name])
        assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("text", ["<ZIB> here", "(<zib>)", "a <zib>, <zib>"])
def test_the_word_is_found_in_capitals_and_between_signs(base: Path, text: str) -> None:
    parts = attached(base, TWO)
    family = families.family_of(parts.facts)
    ids = family.tokenize(parts, [text], 1)[ENCODER][0].tolist()
    first = len(learnt(parts).tokenizer)
    where = ids.index(first)
    assert ids[where + 1] == first + 1
    count = text.lower().count("<zib>")
    assert ids.count(first) == ids.count(first + 1) == count
    others = family.count_tokens(load(base), text.lower().replace("<zib>", ""))
    assert family.count_tokens(parts, text) == others + 2 * count


def test_the_word_inside_another_is_not_it(base: Path) -> None:
    parts = attached(base, TextualInversionSection(tokens=["zib"], vectors=2))
    family = families.family_of(parts.facts)
    plain, changed = (family.tokenize(p, ["zibra and azib"], 1)[ENCODER] for p in (load(base), parts))
    assert torch.equal(plain, changed)


def test_rows_are_trained_in_fp32_on_a_half_precision_encoder(base: Path) -> None:
    facts = families.recognise(BaseSection(path=str(base)))
    parts = families.family_of(facts).load(facts, (ENCODER,), {ENCODER: torch.bfloat16})
    METHOD.attach(parts, TWO, RATES)
    assert learnt(parts).rows.dtype is torch.float32
    assert learnt(parts)(torch.tensor([[0, 1]])).dtype is torch.bfloat16


# -- training -----------------------------------------------------------------------------------------

METHOD_SETTINGS = {"kind": "textual_inversion", "tokens": ["zib"], "vectors": 2, "init": ["x y"]}


@pytest.fixture
def new(trainer: Trainer) -> Callable[..., Any]:
    """Make a run of textual inversion: the tiny trainer's settings, with others laid over them."""

    def make(**changes: Any) -> Any:
        values = {"method": METHOD_SETTINGS, "optim__lr": 0.05, "optim__schedule": "constant"}
        return trainer.new(**values | {"export__formats": list(LAYOUTS)} | changes)

    return make


def test_a_run_learns_the_word_and_nothing_else(
    trainer: Trainer, new: Callable[..., Any], base: Path
) -> None:
    from sdtrainer.training import run as training

    seen: list[Any] = []
    real, training.Loop = training.Loop, lambda t, *rest: seen.append(t) or real(t, *rest)  # type: ignore
    try:
        folder = new(train__steps="40", train__validate_every="20", sample__every="0")
        events = trainer.run(folder)
    finally:
        training.Loop = real
    parts, fresh = seen[0].parts, load(base)
    losses = [e.loss for e in events if isinstance(e, Validated)]
    assert losses[-1] < losses[0]
    begun = load(base)
    METHOD.attach(begun, seen[0].plan.config.method, RATES)
    assert not torch.isclose(learnt(parts).rows, learnt(begun).rows).any()
    METHOD.detach(parts, seen[0].plan.config.method)
    assert all(fingerprint(m) == fingerprint(fresh.modules[n]) for n, m in parts.modules.items())


def test_checkpointing_changes_no_number(trainer: Trainer, new: Callable[..., Any]) -> None:
    losses = {}
    for switch in ("on", "off"):
        folder = new(train__steps="3", train__checkpointing=switch, sample__prompts=[], run__name=switch)
        losses[switch] = [x for e in trainer.run(folder) if isinstance(e, Stepped) for x in e.losses]
    assert len(losses["on"]) == 3
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-5)


def test_the_penalty_is_added_once_whatever_the_batch(trainer: Trainer, base: Path) -> None:
    """What is accumulated and gathered are means over samples: of them it is a constant part."""
    added = []
    for batch_size in (1, 4):
        losses = []
        for weight in (0.0, 1000.0):
            plan = planned(trainer, method={"norm_weight": weight})
            parts = load(base)
            METHOD.attach(parts, plan.config.method, RATES)
            family = families.family_of(parts.facts)
            tokens = family.tokenize(parts, ["a zib"] * batch_size, 1)
            latents = Latents(torch.ones(batch_size, 4, 8, 8), torch.zeros(batch_size, 4, 8, 8))
            batch = Batch(torch.ones(batch_size), torch.zeros(batch_size, 6), latents=latents, tokens=tokens)
            step = TrainStep(family, parts, plan)
            losses.append(step(batch, torch.Generator().manual_seed(0)).mean().item())
        added.append(losses[1] - losses[0])
    assert added == pytest.approx([1000 * learnt(parts).norm_error().item()] * 2, rel=1e-3)
    assert added[0] > 1e-3


def test_the_penalty_pulls_the_norm_to_that_of_other_words(base: Path) -> None:
    parts = load(base)
    section = TextualInversionSection(vectors=4, norm_weight=1.0)
    (group,) = METHOD.attach(parts, section, RATES)
    (rows,) = group.parameters
    torch.nn.init.normal_(rows, std=1.0)
    usual = mean_norm(learnt(parts).table.weight)
    before = abs(mean_norm(rows) - usual).item()
    penalty = METHOD.penalty(parts, section)
    assert penalty is not None and penalty.item() == pytest.approx(before**2, rel=1e-4)
    optimizer = torch.optim.SGD([rows], lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        METHOD.penalty(parts, section).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert abs(mean_norm(rows) - usual).item() < 0.3 * before
    assert METHOD.penalty(parts, TWO) is None


# -- what cannot work is refused before anything loads -----------------------------------------------


@pytest.mark.parametrize(
    ("settings", "path", "words"),
    [
        ({"tokens": []}, "method.tokens", "there is none"),
        ({"tokens": ["two words"]}, "method.tokens", "without spaces"),
        ({"tokens": ["zib", "ZIB2"]}, "method.tokens", "one stands inside another"),
        ({"tokens": ["<zib>", "(zib)"]}, "method.tokens", "differ in signs alone"),
        ({"tokens": ["<a1>", "<b1>", "<c1>"], "init": ["x", "y"]}, "method.init", "2 lines for 3"),
        ({"init": [" "]}, "method.init", "none of them empty"),
        ({"init_from": "no/such.pt"}, "method.init_from", "there is no no/such.pt"),
        ({"tokens": ["x"]}, "method.tokens", "'x' is a word that the model knows"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    trainer: Trainer, settings: dict[str, Any], path: str, words: str
) -> None:
    folder = trainer.new(method={"kind": "textual_inversion"} | settings)
    with pytest.raises(UserError, match=words) as refused:
        trainer.run(folder)
    assert refused.value.path == path
    assert not folder.plan_file.exists()


def test_training_goes_on_from_a_file(base: Path, tmp_path: Path, trainer: Trainer) -> None:
    file = tmp_path / "begun.pt"
    legacy_pt.write(file, {"string_to_param": {"*": VECTORS}, "name": "begun"})
    begun = TextualInversionSection(vectors=2, init_from=str(file))
    parts = load(base)
    METHOD.suits(begun, parts.facts)
    METHOD.attach(parts, begun, RATES)
    assert torch.equal(learnt(parts).rows, VECTORS)
    with pytest.raises(UserError, match="Write 2"):
        METHOD.suits(begun.model_copy(update={"vectors": 3}), parts.facts)
    with pytest.raises(UserError, match="for one word"):
        METHOD.suits(begun.model_copy(update={"tokens": ["<a1>", "<b1>"]}), parts.facts)


# -- the trigger word ---------------------------------------------------------------------------------


def planned(trainer: Trainer, **changes: Any) -> Any:
    method = METHOD_SETTINGS | changes.pop("method", {})
    return planner.draft(trainer.config(method=method, **changes), trainer.workspace, CPU_ONLY).plan


def test_the_word_is_the_trigger_word_while_none_is_given(trainer: Trainer) -> None:
    plan = planned(trainer, method={"tokens": ["<new>"]})
    assert plan.config.data.trigger == "<new>"
    assert [c.value for c in plan.choices if c.path == "data.trigger"] == ["<new>"]
    assert not plan.cache_text and not plan.place(DENOISER, "train").is_trainable
    given = planned(trainer, method={"tokens": ["<new>"]}, data__trigger="my <new> disc")
    assert given.config.data.trigger == "my <new> disc"
    assert not [c for c in given.choices if c.path == "data.trigger"]


def test_captions_that_name_some_of_several_words_are_left_as_they_are(trainer: Trainer) -> None:
    """The pictures' own captions say 'zib'."""
    assert planned(trainer, method={"tokens": ["zib", "zob"], "init": ["x"]}).config.data.trigger == ""
    unnamed = planned(trainer, method={"tokens": ["<new1>", "<new2>"], "init": ["x"]})
    assert unnamed.config.data.trigger == "<new1>"


@pytest.mark.parametrize("changes", [{}, {"data__templates": ["style"]}])
def test_a_run_whose_captions_have_no_word_is_refused(trainer: Trainer, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Trigger word: it is 'ohwx', and no caption has <new>") as refused:
        planned(trainer, method={"tokens": ["<new>"]}, data__trigger="ohwx", **changes)
    assert refused.value.path == "data.trigger"
    named = planned(trainer, method={"tokens": ["<new>"]}, data__trigger="ohwx", data__prefix="<new>")
    assert named.config.data.trigger == "ohwx"


def test_a_template_that_asks_for_a_trigger_word_in_vain_is_refused(trainer: Trainer) -> None:
    with pytest.raises(UserError, match=r"Caption templates: \[trigger\]") as refused:
        planner.draft(trainer.config(data__templates=["a [trigger]"]), trainer.workspace, CPU_ONLY)
    assert refused.value.path == "data.trigger"


def test_a_resumed_plan_keeps_the_trigger_word(trainer: Trainer) -> None:
    folder = trainer.new(method=METHOD_SETTINGS | {"tokens": ["<new>"]})
    draft = planner.draft(folder.config(), trainer.workspace, CPU_ONLY)
    planner.save(draft, folder)
    read = planner.load(folder)
    assert read is not None and read.plan.config.data.trigger == "<new>"


def test_vectors_count_as_tokens(trainer: Trainer, new: Callable[..., Any]) -> None:
    """75 vectors and a caption need a second window."""
    assert decide(new(run__name="short"), trainer.workspace).plan.chunks == 1
    long = new(run__name="long", method=METHOD_SETTINGS | {"vectors": 75})
    assert decide(long, trainer.workspace).plan.chunks == 2


def test_the_result_is_drawn_with_as_the_run_drew(trainer: Trainer, new: Callable[..., Any]) -> None:
    from PIL import Image

    from sdtrainer import result

    folder = new(train__steps="4", sample__every="4", **DRAWING)
    events = trainer.run(folder)
    assert isinstance(events[-1], Finished) and result.exported_file(folder).name == "test.safetensors"
    assert sorted(p.name for p in folder.output.iterdir()) == [
        "test-diffusers.safetensors", "test.pt", "test.safetensors",
    ]  # fmt: skip
    config, sampler = folder.config(), result.sampler(folder.config().base, result.exported_file(folder))
    sample = config.sample
    drawn = sampler.draw(
        Request("a zib disc", "", 64, 64, sample.steps, sampler.parts.facts.guidance, sample.seed)
    )
    pictures = sorted(folder.samples.rglob("*.png"))
    assert len(pictures) == 2
    assert [Image.open(p).tobytes() == drawn.tobytes() for p in pictures] == [False, True]
