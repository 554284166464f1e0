"""The files of textual inversion: other programs read ours, and we read theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_textual_inversion import LAYOUTS, SEVERAL, TWO, VECTORS, attached, hidden, learnt, load, order

from sdtrainer import families
from sdtrainer.formats import legacy_pt
from sdtrainer.methods.textual_inversion import METHOD, TextualInversionSection
from sdtrainer.sample import Request, Sampler
from sdtrainer.section import UserError

# -- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_put_on_a_fresh_base_means_what_was_learnt(base: Path, tmp_path: Path, layout: str) -> None:
    parts = attached(base, TWO)
    (file,) = METHOD.export(parts, TWO, order(tmp_path, layout))
    assert METHOD.reads(file) and file.stat().st_size < 4000
    fresh = load(base)
    METHOD.put_on(fresh, file, 1.0)
    assert torch.equal(hidden(fresh, "a <zib> disc"), hidden(parts, "a <zib> disc"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_word_of_a_run_has_a_file_and_the_first_brings_the_others(
    base: Path, tmp_path: Path, layout: str
) -> None:
    parts = attached(base, SEVERAL)
    written = METHOD.export(parts, SEVERAL, order(tmp_path, layout))
    assert [file.name for file in written] == list(METHOD.outputs(SEVERAL, "result", (layout,)))
    assert len(written) == 2 and written[0].name.startswith("result-zib")
    text, fresh = "<zob> and <zib>", load(base)
    METHOD.put_on(fresh, written[0], 1.0)
    assert torch.equal(hidden(fresh, text), hidden(parts, text))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_draws_with_each_file_as_we_do(
    base: Path, tmp_path: Path, layout: str, vectors: int
) -> None:
    section = TextualInversionSection(tokens=["<zib>"], vectors=vectors)
    parts = attached(base, section)
    (file,) = METHOD.export(parts, section, order(tmp_path, layout))
    sampler = Sampler(families.family_of(parts.facts), parts, "cpu", None)
    ours = sampler.draw(Request("a <zib> disc", "", 64, 64, 2, 3.0, 1))
    fresh = load(base)
    theirs = families.family_of(fresh.facts).pipeline(fresh)
    theirs.set_progress_bar_config(disable=True)
    named = {"token": "<zib>"} if layout == "webui" else {}  # the others name the word themselves
    theirs.load_textual_inversion(str(tmp_path), weight_name=file.name, **named)
    drawn = theirs(
        "a <zib> disc", negative_prompt="", width=64, height=64, num_inference_steps=2, guidance_scale=3.0,
        generator=[torch.Generator("cpu").manual_seed(1)],
    ).images[0]  # fmt: skip
    assert drawn.tobytes() == ours.tobytes()
    plain = Sampler(families.family_of(fresh.facts), load(base), "cpu", None)
    assert plain.draw(Request("a <zib> disc", "", 64, 64, 2, 3.0, 1)).tobytes() != ours.tobytes()


def test_the_pt_file_is_one_that_older_programs_open(base: Path, tmp_path: Path) -> None:
    """Not a zip file but the older stream, and in it plain names, numbers and tensors."""
    import pickletools

    parts = attached(base, TWO)
    (file,) = METHOD.export(parts, TWO, order(tmp_path, "pt"))
    stream = file.read_bytes()
    assert not stream.startswith(b"PK")
    with file.open("rb") as opened:
        named = [
            argument
            for _ in range(4)
            for opcode, argument, _ in pickletools.genops(opened)
            if opcode.name == "GLOBAL"
        ]
    assert set(named) <= {
        "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "collections OrderedDict",
    }  # fmt: skip
    content = legacy_pt.read(file)
    assert content["string_to_token"] == {"*": 265}
    assert (content["name"], content["step"], content["sd_checkpoint_name"]) == ("<zib>", 12, "base")
    assert torch.equal(content["string_to_param"]["*"], learnt(parts).rows.detach())


def test_the_promised_size_is_that_of_the_files(base: Path, tmp_path: Path) -> None:
    for section in (SEVERAL, TextualInversionSection(vectors=75)):
        parts = attached(base, section)
        size = sum(file.stat().st_size for file in METHOD.export(parts, section, order(tmp_path, "webui")))
        assert METHOD.exported_bytes(parts, section, "fp16") == pytest.approx(size, rel=0.35)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.safetensors", {"emb_params": VECTORS}, "a"),
        ("a.safetensors", {"emp_params": VECTORS, "emp_params_out": VECTORS + 1}, "a"),
        ("a.safetensors", {"<cat>": VECTORS}, "<cat>"),
        ("a.safetensors", {"clip_l": VECTORS}, "a"),
        ("a.pt", {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "*"}, "a"),
        ("a.pt", {"string_to_param": {"*": VECTORS}, "name": "cat", "step": 3}, "cat"),
        ("a.bin", {"<cat>": VECTORS[0]}, "<cat>"),
    ],
)
def test_files_of_other_programs_are_read(
    base: Path, tmp_path: Path, name: str, content: dict[str, Any], word: str
) -> None:
    if name.endswith(".safetensors"):
        save_file(content, tmp_path / name)
    else:
        torch.save(content, tmp_path / name)
    parts = load(base)
    assert METHOD.reads(tmp_path / name)
    METHOD.put_on(parts, tmp_path / name, 1.0)
    assert list(parts.placeholders) == [word]
    count = 1 if name == "a.bin" else 2
    assert torch.equal(learnt(parts).rows, VECTORS[:count])
    assert not learnt(parts).rows.requires_grad


def test_what_is_no_embedding_is_not_taken_for_one(base: Path, tmp_path: Path) -> None:
    save_file({"a.lora_down.weight": VECTORS, "a.alpha": torch.ones(())}, tmp_path / "lora.safetensors")
    legacy_pt.write(tmp_path / "network.pt", {768: ({"w": VECTORS}, {"w": VECTORS}), "name": "x"})
    assert not METHOD.reads(tmp_path / "lora.safetensors")
    assert not METHOD.reads(tmp_path / "network.pt")
    assert not METHOD.reads(base) and not METHOD.reads(tmp_path / "missing.pt")


def test_several_files_go_onto_one_base(base: Path, tmp_path: Path) -> None:
    for name, vectors in (("one", VECTORS), ("two", -VECTORS)):
        save_file({f"<{name}>": vectors}, tmp_path / f"{name}.safetensors")
    together = load(base)
    for name in ("one", "two"):
        METHOD.put_on(together, tmp_path / f"{name}.safetensors", 1.0)
    for name in ("one", "two"):
        alone = load(base)
        METHOD.put_on(alone, tmp_path / f"{name}.safetensors", 1.0)
        assert torch.equal(hidden(together, f"a <{name}>"), hidden(alone, f"a <{name}>"))


def test_a_file_for_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    wide, both = tmp_path / "wide.safetensors", tmp_path / "both.safetensors"
    save_file({"emb_params": torch.ones(1, 1024)}, wide)
    save_file({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, both)
    for file, width in ((wide, "1024"), (both, "2048")):
        with pytest.raises(UserError, match=f"{file.name} is made for a text {width} wide; .* is 32"):
            METHOD.put_on(load(base), file, 1.0)


def test_a_word_has_no_strength(base: Path, tmp_path: Path) -> None:
    save_file({"<cat>": VECTORS}, tmp_path / "cat.safetensors")
    with pytest.raises(UserError, match=r"it is 0\.5, and a learnt word has none"):
        METHOD.put_on(load(base), tmp_path / "cat.safetensors", 0.5)
    without = load(base)
    METHOD.put_on(without, tmp_path / "cat.safetensors", 0.0)
    assert without.placeholders == {}
