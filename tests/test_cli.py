"""The command line: what the exit code says, what goes to which stream, and that its documentation holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sd15

from sdtrainer.__main__ import VERBS, main
from sdtrainer.config import knobs
from sdtrainer.presets import presets
from sdtrainer.verbs import show
from sdtrainer.workspace import PROJECT

Output = pytest.CaptureFixture[str]


def in_a_process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line as a person does."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "SDTRAINER_WORKSPACE": str(cwd / "workspace")}
    command = [sys.executable, "-m", "sdtrainer", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.fixture
def run_file(tmp_path: Path, base: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on the tiny base model, as a person would write it."""
    monkeypatch.setenv("SDTRAINER_WORKSPACE", str(tmp_path / "workspace"))
    path = tmp_path / "run.toml"
    path.write_text(
        f"schema = 1\n[base]\npath = '{base}'\n[data]\nfolder = '{images}'\n[train]\nsteps = '10 epochs'\n",
        encoding="utf-8",
    )
    return path


def refused(output: Output, *words: str) -> str:
    """The one line on stderr of a command line that exits with 2 and says nothing on stdout."""
    assert main(words) == 2
    said = output.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


def test_no_verb_prints_the_usage(capsys: Output) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {verb}" in said for verb in VERBS)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("dance",), "There is no verb 'dance'."),
        (("train",), "No run file is given."),
        (("train", "no-such.toml"), "no-such.toml cannot be read."),
        (("train", "--resume", "no-such-run"), "is not a run folder"),
        (("train", "--bogus"), "unrecognized arguments: --bogus"),
        (("plan",), "the following arguments are required"),
        (("show", "more"), "unrecognized arguments: more"),
        (("sample", "no-such-file", "--prompt", "x"), "there is nothing at"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(
    capsys: Output, words: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(capsys, *words)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[train]\nbatch_size = 0\n", "line 2: Batch size (train.batch_size) is 0."),
        ("[train]\nbatchsize = 1\n", "Did you mean 'train.batch_size'?"),
        ("[train]\nsteps = 1\nsteps = 2\n", "line 3: this is not TOML"),
        ("[train]\nprecision = '''a\nb'''\n", "Precision (train.precision) is 'a\\nb'"),
        ('[data]\nfolder = "no\\nwhere"\n', "no where"),
        ("", "Images: no folder is chosen."),
    ],
)
def test_bad_run_files_are_one_line_and_exit_code_2(
    capsys: Output, tmp_path: Path, base: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    assert sentence in refused(capsys, "plan", str(path), f"base.path={base}")


def test_a_process_exits_with_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"[run]\nname = '\xe9'\n")
    done = in_a_process("train", "run.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run.toml is not UTF-8 text. Check the path and the file.\n"
    assert not (tmp_path / "workspace").exists()


def test_plan_says_what_a_run_would_do(capsys: Output, run_file: Path) -> None:
    assert main(["plan", str(run_file), "train.batch_size=2", "method.rank=4"]) == 0
    said = capsys.readouterr().out
    assert "5 images" in said and "30 steps" in said and "my-lora.safetensors" in said
    assert "activations not counted" in said


def test_plan_for_programs_is_json(capsys: Output, run_file: Path) -> None:
    assert main(["plan", str(run_file), "--json", "method.rank=4"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == 50 and plan["images"] == 5
    assert plan["exported_bytes"] > 0 and plan["peaks"]["train"] > 0
    assert plan["choices"]["data.cache_latents"]["value"] is True


def test_plan_needs_no_weights(capsys: Output, run_file: Path, tmp_path: Path) -> None:
    folder = sd15.write(tmp_path / "sd15")
    assert main(["plan", str(run_file), f"base.path={folder}"]) == 0
    assert "Stable Diffusion 1" in capsys.readouterr().out


def test_show_prints_every_setting_and_preset(capsys: Output) -> None:
    assert main(["show"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{knob.path}" in said for knob in knobs())
    assert all(preset.name in said for preset in presets())


def test_the_documentation_of_the_settings_is_up_to_date() -> None:
    """If this fails: python -m sdtrainer show --markdown > docs/settings.md"""
    assert (PROJECT / "docs" / "settings.md").read_text(encoding="utf-8") == show.markdown() + "\n"


def test_every_row_of_the_documentation_has_four_cells() -> None:
    tables, _, preset_table = show.markdown().partition("## Presets")
    rows = [line for line in tables.splitlines() if line.startswith("| `")]
    assert len(rows) == len(knobs())
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)
    assert preset_table.count("\n| `") == len(presets())


def test_trace_without_a_run_file_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    from sdtrainer.__main__ import main

    assert main(["trace"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no run file" in said[0]
