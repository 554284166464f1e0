"""Settings: one declaration each, and what people get to read when they write one wrongly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdtrainer import config as configs
from sdtrainer.config import Config, build, changed, flatten, knobs, with_changes
from sdtrainer.methods import METHODS
from sdtrainer.section import Knob, UserError, override, steps_of

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "gradio", "bitsandbytes")


def complaint(text: str, tmp_path: Path, *assignments: str) -> UserError:
    """Return what a run file of this text, with these words of the command line, is refused with."""
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        written = configs.read_text(path)
        build(with_changes(configs.parse(written, str(path)), assignments), str(path), written)
    assert "\n" not in str(raised.value)
    return raised.value


def built(*assignments: str) -> Config:
    return build(with_changes({}, assignments))


# -- declarations -----------------------------------------------------------------------------------


def test_every_setting_has_title_help_and_bounds() -> None:
    found = knobs()
    assert len(found) > 60
    assert len({k.key for k in found}) == len(found)
    for knob in found:
        assert knob.title[0].isupper() and not knob.title.endswith("."), knob.path
        assert knob.help.endswith(".") and len(knob.help) > 20, knob.path
        assert len(knob.unit) <= 8 and knob.unit == knob.unit.strip(), knob.path
        if knob.annotation in (int, float):
            assert {"ge", "gt"} & knob.bounds.keys() and {"le", "lt"} & knob.bounds.keys(), knob.path


def test_every_section_is_walked() -> None:
    assert {k.section for k in knobs()} == set(Config.model_fields) - {"schema_version"}


def test_settings_that_scripts_rely_on_exist() -> None:
    paths = {k.path for k in knobs()}
    assert {"base.path", "data.folder", "method.rank", "train.steps", "train.batch_size"} <= paths
    assert {"train.resolution", "train.seed", "checkpoint.every", "run.name"} <= paths
    assert build({"method": {"kind": "lora"}}).method.kind == "lora"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("method.rank", "a whole number from 1 to 1024"),
        ("optim.lr", "a number from 0 to 10"),
        ("optim.beta1", "a number, at least 0 and below 1"),
        ("data.bucket_step", "a whole number from 0 to 256, a multiple of 8"),
        ("train.seed", "a whole number from 0 to 2147483647"),
        ("train.resolution", "a whole number or a list of whole numbers, as in [512, 768]"),
        ("train.steps", "a number of steps (1500), epochs (10 epochs) or a part of the run (25%)"),
        ("train.precision", "one of auto, fp32, fp16, bf16"),
        ("export.formats", "a list of webui and diffusers and pt"),
        ("sample.prompts", 'a list of texts, as in ["one", "two"]'),
        ("sample.at_start", "true or false"),
        ("run.name", "text, at most 80 characters"),
    ],
)
def test_what_is_allowed_is_said_exactly(path: str, words: str) -> None:
    assert next(k for k in knobs() if k.path == path).allowed() == words


def test_importing_the_settings_imports_nothing_heavy() -> None:
    code = f"import sys, sdtrainer.presets; print([m for m in {HEAVY} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# -- what is refused, and how -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "sentence"),
    [
        (
            "[train]\nsteps = 3\nbatch_size = 0\n",
            "train.batch_size",
            "line 3: Batch size (train.batch_size) is 0. Allowed: a whole number from 1 to 256.",
        ),
        ("[train]\nbatch_size = 2.5\n", "train.batch_size", "line 2: Batch size (train.batch_size) is 2.5."),
        (
            "[train]\nbatch_size = true\n",
            "train.batch_size",
            "line 2: Batch size (train.batch_size) is True.",
        ),
        ('[train]\nbatch_size = "4"\n', "train.batch_size", "line 2: Batch size (train.batch_size) is '4'."),
        ("train.batch_size = 999\n", "train.batch_size", "line 1: Batch size (train.batch_size) is 999."),
        ("train = { batch_size = 0 }\n", "train.batch_size", "line 1: Batch size (train.batch_size) is 0."),
        ("[optim]\nlr = 11\n", "optim.lr", "is 11. Allowed: a number from 0 to 10."),
        ("[optim]\nlr = nan\n", "optim.lr", "line 2: Learning rate (optim.lr) is nan."),
        ("[optim]\nlr = 2024-01-01\n", "optim.lr", "line 2: Learning rate (optim.lr) is datetime.date"),
        (
            "[train]\nresolution = 100\n",
            "train.resolution",
            "Allowed: sides are multiples of 8 from 64 to 2048",
        ),
        ('[train]\nsteps = "50%"\n', "train.steps", "Allowed: write steps (1500) or epochs (10 epochs)."),
        ("[train]\nsteps = 0\n", "train.steps", "Allowed: at least one step is needed."),
        (
            "[train]\nsteps = true\n",
            "train.steps",
            "Length (train.steps) is True. Allowed: a number of steps",
        ),
        ('[sample]\nevery = "101%"\n', "sample.every", "Allowed: a part of the run is at most 100%."),
        ('[sample]\nprompts = ["a",\n 3]\n', "sample.prompts", "line 2: Prompts (sample.prompts) is 3."),
        (
            '[export]\nformats = ["zip"]\n',
            "export.formats",
            "is 'zip'. Allowed: a list of webui and diffusers and pt.",
        ),
        ('[run]\nname = "../up"\n', "run.name", "line 2: Name (run.name) is '../up'. Allowed: use letters"),
        ("[run]\nname = 3\n", "run.name", "line 2: Name (run.name) is 3. Allowed: text"),
        (
            '[method]\nkind = "magic"\n',
            "method.kind",
            "line 2: Method (method.kind) is 'magic'. Allowed: one of lora",
        ),
        (
            "[method]\nrank = 0\n",
            "method.rank",
            "line 2: Rank (method.rank) is 0. Allowed: a whole number from 1",
        ),
        ("# hello\ntrain = 3\n", "train", "line 2: 'train' is a section, not a setting."),
        ("schema = 7\n", "schema", "line 1: Schema (schema) is 7. Allowed: 2."),
    ],
)
def test_a_wrong_value_is_named_with_title_path_value_place_and_what_is_allowed(
    text: str, path: str, sentence: str, tmp_path: Path
) -> None:
    error = complaint(text, tmp_path)
    assert error.path == path
    assert sentence in str(error)
    assert str(error).startswith(f"{tmp_path / 'run.toml'}, line ")


def test_an_unknown_setting_gets_a_suggestion(tmp_path: Path) -> None:
    error = complaint("[train]\nbatchsize = 2\n", tmp_path)
    assert "line 2: There is no setting 'train.batchsize'." in str(error)
    assert error.hint == "Did you mean 'train.batch_size'?"
    assert complaint("[trian]\nsteps = 2\n", tmp_path).hint == "Did you mean 'train'?"
    assert complaint("wholly_else = 2\n", tmp_path).hint == "Run 'show' for all settings."


def test_a_setting_of_another_method_says_whose_it_is(tmp_path: Path) -> None:
    error = complaint('[method]\nkind = "hypernetwork"\nrank = 4\n', tmp_path)
    assert "line 3: There is no setting 'method.rank'. It belongs to lora" in str(error)


def test_left_unsaid_the_method_is_the_first() -> None:
    assert build({"method": {"rank": 3}}).method.kind == METHODS[0]


def test_a_very_long_value_is_shortened(tmp_path: Path) -> None:
    assert len(complaint(f'[train]\nprecision = "{"x" * 5000}"\n', tmp_path).what) < 300


@pytest.mark.parametrize(
    "text", ["[train\nsteps = 3\n", "[run]\nname = me\n", "[a]\nb = 1\nb = 2\n", "x = 'a"]
)
def test_bad_toml_names_file_and_line(text: str, tmp_path: Path) -> None:
    error = complaint(text, tmp_path)
    assert f"{tmp_path / 'run.toml'}" in str(error) and "this is not TOML" in str(error)
    assert "line" in str(error) or "end of document" in str(error)


@pytest.mark.parametrize("raw", ["[train]\nsteps = 3\n".encode("utf-16"), b"name = '\xe9'", b"\xff"])
def test_text_in_another_encoding_is_refused_by_name(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"run\.toml is not UTF-8 text"):
        configs.load(path)


def test_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 3\r\n")
    assert configs.load(path) == {"train": {"steps": 3}}


def test_missing_file_and_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            configs.load(path)


# -- the command line -------------------------------------------------------------------------------


def test_overrides_are_toml_and_bare_words_are_text() -> None:
    config = built(
        "method.rank=8", "optim.lr=2e-4", "data.flip=true", "data.trigger=zib robot", "sample.prompts=['a, "
        "b', 'c']",
        "train.resolution=[512, 768]", "train.steps=10 epochs", "sample.every=25%", "run.note=\"x = 'y'\"",
    )  # fmt: skip
    assert (config.method.rank, config.optim.lr, config.data.flip) == (8, 2e-4, True)
    assert (config.data.trigger, config.sample.prompts) == ("zib robot", ["a, b", "c"])
    assert config.train.resolutions == (512, 768)
    assert (config.train.steps, config.sample.every) == ("10 epochs", "25%")
    assert config.run.note == "x = 'y'"


@pytest.mark.parametrize("word", ["2026", "true", "2026-01-31", "[x]", "1\n2", "a=b", ""])
def test_text_settings_take_any_word_as_text(word: str) -> None:
    assert built(f"run.note={word}").run.note == word


def test_a_word_without_equals_is_refused() -> None:
    with pytest.raises(UserError, match=r"'method\.rank' is not a setting"):
        with_changes({}, ["method.rank"])


def test_a_wrong_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    text = "[train]\nbatch_size = 2\n"
    for word in ("train.batch_size=0", "train.batchsize=2", "sample.steps=-1"):
        assert str(tmp_path) not in str(complaint(text, tmp_path, word))
    assert "line 2" in str(complaint("[train]\nbatch_size = 0\n", tmp_path, "method.rank=8"))


def test_override_of_a_value_that_should_be_a_section(tmp_path: Path) -> None:
    assert "'train' is a section" in str(complaint("train = 3\n", tmp_path, "train.steps=5"))


def test_another_kind_drops_the_old_kinds_fields_and_the_same_kind_keeps_them() -> None:
    old = {"method": {"kind": "lora", "rank": 4}, "train": {"steps": 3}}
    assert override(old, {"method.rank": 8, "method.kind": "other"})["method"] == {"kind": "other", "rank": 8}
    assert override(old, {"method.kind": "lora"}) == old
    assert override({"method": {"rank": 4}}, {"method.kind": "lora"})["method"] == {"rank": 4, "kind": "lora"}
    assert old["method"] == {"kind": "lora", "rank": 4}


# -- files of former times --------------------------------------------------------------------------


def test_what_was_once_a_switch_is_read() -> None:
    for was, now in ((True, "auto"), (False, "off")):
        assert configs.build({"schema": 1, "base": {"use_t5": was}}).base.t5 == now


def test_renamed_settings_of_an_older_schema_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(configs, "SCHEMA", 2)
    monkeypatch.setattr(configs, "RENAMED", {1: {"train.length": "train.steps", "run.rank": "method.rank"}})
    old = {"schema": 1, "train": {"length": "7 epochs"}, "run": {"rank": 3}}
    config = build(old)
    assert (config.train.steps, config.method.rank, config.schema_version) == ("7 epochs", 3, 2)
    assert old["train"] == {"length": "7 epochs"}
    assert build(config.values()) == config
    assert "line 3: Length (train.steps) is 'x'" in str(
        complaint("schema = 1\n[train]\nlength = 'x'", tmp_path)
    )
    assert "no setting 'train.length'" in str(complaint("schema = 2\n[train]\nlength = 1", tmp_path))


# -- durations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "kept", "steps"),
    [
        (1500, "1500", 1500), ("20 steps", "20", 20), ("1 step", "1", 1), (" 7 ", "7", 7), (0, "0", 0),
        ("10 epochs", "10 epochs", 300), ("1 epoch", "1 epochs", 30), ("0.5epochs", "0.5 epochs", 15),
        ("0.1 epochs", "0.1 epochs", 3), ("7%", "7%", 7), ("12.50 %", "12.5%", 13), ("100%", "100%", 100),
        ("1234567 epochs", "1234567 epochs", 37037010), ("0%", "0%", 0), (2.0, "2", 2),
    ],
)  # fmt: skip
def test_durations_become_steps_exactly(written: Any, kept: str, steps: int) -> None:
    every = build({"sample": {"every": written}}).sample.every
    assert every == kept
    assert build({"sample": {"every": every}}).sample.every == kept
    assert steps_of(every, steps_per_epoch=30, total_steps=100) == steps


@given(st.integers(0, 100), st.integers(1, 10**6))
def test_percent_rounds_up_and_never_over(percent: int, total: int) -> None:
    steps = steps_of(f"{percent}%", 1, total)
    assert 0 <= steps * 100 - percent * total < 100


@pytest.mark.parametrize("written", ["", "ten", "-1", "1.5", "1e3", "9" * 400, "3 weeks", "50 %%", [3], None])
def test_other_durations_are_refused(written: Any) -> None:
    with pytest.raises(UserError, match=r"Draw every \(sample\.every\)"):
        build({"sample": {"every": written}})


# -- there and back ---------------------------------------------------------------------------------

_SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "run.name": st.sampled_from(["a", "my lora 2.1", "zib_robot-3", "Ünïcode"]),
    "train.steps": st.one_of(st.integers(1, 10**6), st.integers(1, 99).map(lambda n: f"{n}.5 epochs")),
    "train.resolution": st.one_of(
        st.just(0), st.lists(st.sampled_from([64, 512, 2048]), min_size=1, max_size=3)
    ),
    "data.background": st.sampled_from(["white", "#808080"]),
    "data.tag_separator": st.sampled_from([",", "; ", "\t"]),
    "data.bucket_max": st.just(2048),
    "noise.min_timestep": st.integers(0, 499),
    "noise.max_timestep": st.integers(500, 1000),
    "method.layer_structure": st.sampled_from(["1, 2, 1", "1, 0.5, 2, 1"]),
    "export.formats": st.sampled_from([["webui"], ["diffusers"], ["diffusers", "webui"]]),
}
_TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=40)


def _values_of(knob: Knob) -> st.SearchStrategy[Any]:
    if knob.path in _SPECIAL:
        return _SPECIAL[knob.path]
    if knob.choices:
        return st.sampled_from(knob.choices)
    if knob.is_duration:
        return st.one_of(st.integers(0, 10**6), st.integers(0, 100).map(lambda n: f"{n}%"))
    low = knob.bounds.get("ge", knob.bounds.get("gt", 0))
    high = knob.bounds.get("le", knob.bounds.get("lt", 0))
    if knob.annotation is int:
        step = int(knob.bounds.get("multiple_of", 1))
        return st.integers(int(low) // step, int(high) // step).map(lambda n: n * step)
    if knob.annotation is float:
        return st.floats(low, high, exclude_min="gt" in knob.bounds, exclude_max="lt" in knob.bounds)
    if knob.annotation is bool:
        return st.booleans()
    return _TEXT if knob.annotation is str else st.lists(_TEXT, max_size=3)


@given(st.data())
def test_config_to_toml_and_back_is_the_identity(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(METHODS))
    mine = [knob for knob in knobs() if knob.kind in ("", kind)]
    chosen = data.draw(st.lists(st.sampled_from(mine), max_size=8, unique_by=lambda k: k.path))
    changes = {knob.path: data.draw(_values_of(knob), label=knob.path) for knob in chosen}
    changes["method.kind"] = kind
    config = build(override({}, changes))
    assert build(configs.parse(configs.to_toml(config), "")) == config
    assert build(config.values()) == config


def test_saved_config_is_read_back_from_disk(tmp_path: Path) -> None:
    config = built("method.rank=3", "sample.prompts=['a \"zib\"', 'ü']")
    configs.save(config, tmp_path / "config.toml")
    assert build(configs.load(tmp_path / "config.toml")) == config
    assert (tmp_path / "config.toml").read_text(encoding="utf-8").startswith("schema = 2\n")


def test_changed_lists_what_differs_and_from_what() -> None:
    assert changed(Config(), Config()) == {}
    assert changed(built("method.rank=8", "data.flip=true"), Config()) == {
        "data.flip": (False, True),
        "method.rank": (16, 8),
    }


def test_flatten_is_undone_by_override() -> None:
    values = Config().values()
    assert override({"schema": values["schema"]}, flatten(values)) == values
