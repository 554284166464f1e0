"""Captioners one by one: tiny real models of each kind, and rules."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_captioners
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from sdtrainer import captioners, hardware, hub
from sdtrainer.captioners import WHOLE, Name, Picture, captioner, room, writing
from sdtrainer.captioners.section import Settings
from sdtrainer.data.census import Sample
from sdtrainer.hardware import CPU_ONLY, GIB, imagined
from sdtrainer.section import UserError, fields

MODELS = tuple(tiny_captioners.MAKERS)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("captioners")
    return {name: make(home / name) for name, make in tiny_captioners.MAKERS.items()}


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_captioners.make_tagger(tmp_path_factory.mktemp("captioners") / "tagger")


def picture(colour: str, size: tuple[int, int] = (40, 30), path: str = "a.png", caption: str = "") -> Picture:
    image = Image.new("RGB", size, colour)
    ImageDraw.Draw(image).ellipse((5, 5, 20, 20), fill="purple")
    return Picture(Sample(path, Path("photos"), *size, caption, ".txt", "", 1, 1, 1), image)


PICTURES = [picture("red"), picture("blue", (20, 60)), picture("white", (64, 64))]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_captioned_as_its_pictures_one_by_one(name: Name, folders: dict[str, Path]) -> None:
    settings = Settings(max_tokens=8)
    caption = captioner(name).load(folders[name], "cpu", "fp32", settings)
    alone = [caption([one])[0] for one in PICTURES]
    assert caption(PICTURES) == alone
    assert len(set(alone)) > 1, "the picture makes no difference"
    assert all(alone) and all("<" not in text for text in alone)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_each_model_writes_in_fewer_bits(name: Name, precision: str, folders: dict[str, Path]) -> None:
    by = captioner(name)
    caption = by.load(folders[name], "cpu", precision, Settings(max_tokens=5))  # type: ignore[arg-type]
    assert len(caption(PICTURES)) == len(PICTURES)
    assert by.memory(folders[name], precision) < by.memory(folders[name], "fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [n for n in MODELS if n != "florence2"])
def test_an_instruction_changes_what_is_written(name: Name, folders: dict[str, Path]) -> None:
    plain, told = (Settings(max_tokens=8, instruction=text) for text in ("", "a photo of"))
    by, one = captioner(name), PICTURES[:1]
    first, second = (by.load(folders[name], "cpu", "fp32", settings)(one)[0] for settings in (plain, told))
    assert first != second
    assert second.startswith("a photo of") or name != "blip"


def test_some_write_at_the_chosen_length(folders: dict[str, Path]) -> None:
    for name in ("florence2", "qwen", "joycaption"):
        by = captioner(name)  # type: ignore[arg-type]
        texts = {
            by.load(folders[name], "cpu", "fp32", Settings(detail=d, max_tokens=8))(PICTURES[:1])[0]  # type: ignore[arg-type]
            for d in ("short", "medium", "long")
        }
        assert len(texts) > 1, name


def test_tensors_are_known_by_the_names_they_were_published_with(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["joycaption"], tmp_path / "joycaption")
    tensors = load_file(folder / WHOLE)
    then = {key.replace("vision_tower.", "vision_tower.vision_model."): t for key, t in tensors.items()}
    assert then.keys() != tensors.keys() and any(key.startswith("language_model.model.") for key in then)
    save_file(then, folder / WHOLE, {"format": "pt"})
    first, second = (
        captioner("joycaption").load(place, "cpu", "fp32", Settings(max_tokens=8))(PICTURES)
        for place in (folders["joycaption"], folder)
    )
    assert first == second


@pytest.mark.parametrize("sort", ["qwen25", "qwen35", "blip2_t5"])
def test_other_models_of_a_kind_write_too(sort: str, tmp_path: Path) -> None:
    """A batch as its pictures one by one, in all its bits and in 8: each has layers or a way of its own."""
    folder = getattr(tiny_captioners, f"make_{sort}")(tmp_path / sort)
    by = captioner("qwen" if sort.startswith("qwen") else "blip2")
    caption = by.load(folder, "cpu", "fp32", Settings(max_tokens=8))
    alone = [caption([one])[0] for one in PICTURES]
    assert caption(PICTURES) == alone and all(alone)
    assert len(by.load(folder, "cpu", "int8", Settings(max_tokens=8))(PICTURES[:1])) == 1


def test_a_model_that_thinks_first_is_told_that_it_has(tmp_path: Path) -> None:
    folder = tiny_captioners.make_qwen35(tmp_path / "qwen35")
    by = captioner("qwen")
    tools, model = by.tools(folder), by._model(by._class(folder), folder, "cpu", "fp32")  # type: ignore[attr-defined]
    asked = by.inputs(tools, model, [PICTURES[0].image], Settings())  # type: ignore[attr-defined]
    told = tools.tokenizer.decode(asked.tensors["input_ids"][0])
    assert told.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 900)])
def test_pictures_of_odd_shapes_are_captioned(size: tuple[int, int], folders: dict[str, Path]) -> None:
    caption = captioner("qwen").load(folders["qwen"], "cpu", "fp32", Settings(max_tokens=5))
    assert caption([picture("red", size)]) != []


def test_in_8_bits_only_the_matrices_are_kept_so(folders: dict[str, Path]) -> None:
    import torch

    from sdtrainer.training.quantized import QuantizedLinear

    for name in MODELS:
        by, folder = captioner(name), folders[name]  # type: ignore[arg-type]
        model = by._model(by._class(folder), folder, "cpu", "int8")  # type: ignore[attr-defined]
        layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        assert layers and all(isinstance(layer, QuantizedLinear) for layer in layers), name
        kept = {n: t.dtype for n, t in model.state_dict().items() if t.is_floating_point()}
        assert {dtype for n, dtype in kept.items() if n.endswith(".scales")} == {torch.float32}, name
        assert len({dtype for n, dtype in kept.items() if not n.endswith(".scales")}) == 1, name


def test_a_folder_of_another_kind_or_without_its_tensors_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"is of the kind 'qwen3_vl'\. Choose one of the kind blip") as raised:
        captioner("blip").load(folders["qwen"], "cpu", "fp32", Settings())
    assert raised.value.path == "model"
    with pytest.raises(UserError, match="is of the kind 'blip'"):
        captioner("florence2").load(folders["blip"], "cpu", "fp32", Settings())
    mixed = shutil.copytree(folders["blip"], tmp_path / "mixed")
    shutil.copy(folders["qwen"] / "model.safetensors", mixed)
    with pytest.raises(UserError, match=r"lacks \d+ of its tensors"):
        captioner("blip").load(mixed, "cpu", "fp32", Settings())
    for file in folders["joycaption"].glob("tokenizer*"):
        shutil.copy(file, mixed)
    shutil.copy(folders["blip"] / "model.safetensors", mixed)
    with pytest.raises(UserError, match=r"could not (be loaded|look at a picture) \(.+\)\. Check that all"):
        captioner("blip").load(mixed, "cpu", "fp32", Settings(instruction="\u00ff"))(PICTURES[:1])


def test_a_pickle_is_not_opened(folders: dict[str, Path], tmp_path: Path) -> None:
    old = shutil.copytree(folders["blip"], tmp_path / "old")
    (old / "model.safetensors").unlink()
    (old / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "run") + b"'\ntR.")
    with pytest.raises(UserError, match="could not be loaded"):
        captioner("blip").load(old, "cpu", "fp32", Settings())
    assert not (tmp_path / "run").exists()


def test_a_tagger_writes_what_it_is_sure_of(tagger: Path) -> None:
    def tags(one: Picture, **values: object) -> str:
        settings = Settings(captioner="wd-tagger", threshold=0.6, character_threshold=0.75, **values)  # type: ignore[arg-type]
        return captioner("wd-tagger").load(tagger, "cpu", "fp32", settings)([one])[0]

    wide = picture("red", (80, 60))  # a quarter is white margin
    assert tags(wide) == "zib (disc), red background"
    assert tags(picture("blue", (40, 40))) == "blue background"
    assert tags(picture("white", (40, 40)), underscores=True, blacklist=["Blue background"]) == (
        "zib_(disc), red_background, o_o"
    )
    assert "o_o" in tags(picture("white")).split(", "), "a face is no pair of words"


def test_a_tagger_whose_table_is_another_models_is_refused(tagger: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tagger, tmp_path / "other")
    table = other / "selected_tags.csv"
    table.write_text(table.read_text() + "\n9,one_more,0,1")
    with pytest.raises(UserError, match="knows 5 tags, and its table lists 6"):
        captioner("wd-tagger").load(other, "cpu", "fp32", Settings())
    table.write_text("no table")
    with pytest.raises(UserError, match="no table of tags"):
        captioner("wd-tagger").load(other, "cpu", "fp32", Settings())


@pytest.mark.parametrize(
    ("name", "path", "text"),
    [
        ("file-name", "pets/red_car-2.jpg", "red car"),
        ("file-name", "IMG_2034.jpg", ""),
        ("file-name", "0012.jpg", ""),
        ("folder-name", "10_zib dog/1.jpg", "zib dog"),
        ("folder-name", "my_pets/1.jpg", "my pets"),
        ("folder-name", "1.jpg", "photos"),
        ("template", "1.jpg", "what is there"),
    ],
)
def test_rules(name: Name, path: str, text: str) -> None:
    one = picture("red", path=path, caption="what is there")
    assert captioner(name).load(None, "cpu", "fp32", Settings())([one]) == [text]


def test_every_captioner_says_what_it_is_and_reads_settings_that_exist() -> None:
    all_of_them = captioners.captioners()
    assert len(all_of_them) == len({by.title for by in all_of_them}) > 7
    for by in all_of_them:
        assert set(by.reads) < set(fields(Settings)) and by.about.endswith(".")
        assert captioner(by.name) is by
        assert by.download is None or (hub.is_id(by.download.repo) and by.download.licence)


@pytest.mark.parametrize(
    ("machine", "chosen"),
    [
        (imagined(24), ("cuda", "bf16")),
        (imagined(24, capability=(7, 5)), ("cuda", "fp16")),
        (imagined(7), ("cuda", "int8")),
        (imagined(3), ("cpu", "fp32")),
        (CPU_ONLY, ("cpu", "bf16")),
    ],
)
def test_the_best_that_fits_is_chosen(machine: object, chosen: tuple[str, str]) -> None:
    needs = {"fp32": 16 * GIB, "fp16": 8 * GIB, "bf16": 8 * GIB, "int8": 4 * GIB}
    found = room.room(Settings(), needs.__getitem__, machine, "It")  # type: ignore[arg-type]
    assert (found.device, found.precision) == chosen


def test_a_format_is_chosen_that_is_fast_and_has_room() -> None:
    quick = replace(CPU_ONLY, processor_has_bf16=True)
    assert [room.quickest("cpu", machine, False) for machine in (CPU_ONLY, quick)] == ["fp32", "bf16"]
    assert room.room(Settings(), lambda kind: GIB, quick, "It").precision == "bf16"
    old, new = imagined(24, capability=(7, 5)), imagined(24)
    for machine, is_wide, half in ((old, False, "fp16"), (old, True, "bf16"), (new, False, "bf16")):
        assert room.room(Settings(), lambda kind: GIB, machine, "It", is_wide).precision == half
    assert hardware.detect().processor_has_bf16 in (True, False)


def test_what_fits_nowhere_is_refused_with_its_size() -> None:
    with pytest.raises(UserError, match=r"It needs about 40.0 GB of memory, and 12.0 GB are free"):
        room.room(Settings(), lambda kind: 40 * GIB, CPU_ONLY, "It")


@settings(max_examples=40)
@given(st.text(max_size=40), st.booleans())
def test_tidied_twice_is_tidied_once(text: str, is_cut: bool) -> None:
    tidied = writing.tidy(text, is_cut)
    assert "\n" not in tidied and writing.tidy(writing.tidy(tidied)) == writing.tidy(tidied)


@pytest.mark.parametrize(
    ("said", "is_cut", "text"),
    [
        ('"A dog."', False, "A dog."),
        ("A dog. It sits on the", True, "A dog."),
        ("A dog. It sits.", True, "A dog. It sits."),
        ("a dog on the gra", True, "a dog on the"),
    ],
)
def test_a_cut_text_ends_with_something_whole(said: str, is_cut: bool, text: str) -> None:
    assert writing.tidy(said, is_cut) == text


def test_commas_around_an_empty_place_go_too() -> None:
    values = {"{caption}": "", "{trigger}": "zib", "{name}": "red car", "{folder}": ""}
    assert writing.filled("a photo of {trigger}, {caption}, {name}, {folder}", values) == (
        "a photo of zib, red car"
    )


_TAGS = st.lists(st.sampled_from(["one", "Two", "three four", "five"]), max_size=4).map(", ".join)


@settings(max_examples=40)
@given(_TAGS, _TAGS, st.sampled_from(["replace", "after", "before"]), st.booleans())
def test_joined_twice_is_joined_once(old: str, new: str, mode: writing.Mode, are_tags: bool) -> None:
    once = writing.joined(old, new, mode, are_tags)
    assert writing.joined(once, new, mode, are_tags) == once
    if are_tags and mode != "replace":
        assert {t.casefold() for t in writing._tags(once)} == {
            t.casefold() for t in writing._tags(f"{old}, {new}")
        }
