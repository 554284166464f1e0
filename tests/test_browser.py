"""The whole way in a real browser: start the app as a person would, change, train, stop, reload, find it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdtrainer.formats import picture_text
from sdtrainer.workspace import PROJECT

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_SECONDS, TRAIN_SECONDS = 120, 240_000


def _missing() -> str:
    """Say what this machine lacks for these tests."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is not installed (tests/requirements.txt)"
    return "" if _chromium() else "there is no chromium on this machine"


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


pytestmark = pytest.mark.skipif(
    bool(_missing()) and not os.environ.get("CI"), reason=_missing() or "all there"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The running app, with a workspace of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("browser") / "work space"
    process = subprocess.Popen(
        [sys.executable, "app.py", "--no-browser", "--port", str(port)],
        cwd=PROJECT,
        env=os.environ
        | {"SDTRAINER_WORKSPACE": str(home), "OMP_NUM_THREADS": "1"},  # steady on a busy machine
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield url
        log = home / "log.txt"
        assert not log.exists(), log.read_text()  # a handler failed
    finally:
        process.terminate()
        process.wait(90)


def _wait_for(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the app ended"
        try:
            urllib.request.urlopen(url, timeout=5).read(1)
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer after {START_SECONDS} s")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert not _missing(), _missing()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=_chromium(), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    troubles: list[str] = []
    page.on("console", lambda m: m.type == "error" and _is_trouble(m.text) and troubles.append(m.text))
    page.on("pageerror", lambda error: _is_trouble(str(error)) and troubles.append(str(error)))
    page.on("request", lambda request: _is_elsewhere(request.url, address) and troubles.append(request.url))
    page.set_default_timeout(60_000)
    open_page(page, address)
    yield page
    page.close()
    assert troubles == []


CUT_OFF = ("Connection errored out", "Failed to fetch", "network error", "aborted")
"""What is said of the requests under way when a page is left; a lost server would fail every wait."""


def _is_trouble(text: str) -> bool:
    return not any(words in text for words in CUT_OFF)


def _is_elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))


def open_page(page: Any, address: str) -> None:
    page.goto(address, wait_until="domcontentloaded")
    page.locator("#plan-text dl").wait_for()


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def field(page: Any, key: str) -> Any:
    return page.locator(f"#knob-{key} :is(input, textarea)").first


def holds(page: Any, key: str, value: str) -> None:
    """Wait until a field holds something: an answer's parts do not all reach the page in one go."""
    script = "([place, value]) => document.querySelector(place)?.value === value"
    page.wait_for_function(script, arg=[f"#knob-{key} :is(input, textarea)", value])


def plan(page: Any, pattern: str) -> None:
    """Wait until the plan says something."""
    page.locator("#plan-text", has_text=re.compile(pattern)).wait_for()


def test_captions_are_typed_tagged_changed_at_once_undone_and_kept(page: Any, address: str) -> None:
    page.locator("#pictures img").first.wait_for()
    page.locator("#found", has_text="12 images").wait_for()
    assert page.locator("#pictures img").count() == 12
    page.wait_for_function("[...document.querySelectorAll('#pictures img')].every(i => i.naturalWidth > 0)")
    page.locator("#pictures .thumbnail").first.click()
    caption = page.locator("#caption-text")
    caption.wait_for()
    before = caption.input_value()
    assert "zib" in before
    caption.fill("a zib robot, waving")
    page.locator("#caption-about", has_text="Trained as: a zib robot, waving").wait_for()
    page.locator("#caption-about").get_by_role("button", name="Remove waving").click()
    shows(page, "#caption-text", "a zib robot")
    page.locator("#caption-tag").fill("night")
    page.locator("#caption-tag").press("Enter")
    shows(page, "#caption-text", "a zib robot, night")
    for _ in range(3):  # quicker than the answers
        caption.press("Control+Enter")
    page.locator("#large-picture", has_text="4 of 12").wait_for()
    page.wait_for_function("document.querySelector('#caption-text').value != 'a zib robot, night'")
    caption.press("Escape")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    shows(page, "#caption-text", "a zib robot, night")
    page.keyboard.press("Escape")

    page.locator("#find-search :is(input, textarea)").fill("night")
    page.locator("#found-pictures", has_text="1 of 12").wait_for()
    page.locator("#find-search :is(input, textarea)").fill("")
    page.locator("#found-pictures", has_text=re.compile(r"^\s*12 pictures")).wait_for()
    page.locator("#pictures .thumbnail").nth(1).click(modifiers=["Control"])
    page.locator("#pictures .thumbnail").nth(3).click(modifiers=["Shift"])
    page.locator("#found-pictures", has_text="3 selected").wait_for()
    page.get_by_role("button", name="Change many captions").click()
    page.locator("#bulk-text :is(input, textarea)").fill("zib")
    page.locator("#bulk-new :is(input, textarea)").fill("zab")
    page.locator("#bulk-preview del", has_text="zib").first.wait_for()
    page.locator("#bulk-apply", has_text="Change 3 captions").click()
    page.locator("#undo", has_text="Replaced: zib by zab").wait_for()
    assert page.locator("#pictures", has_text="zab").count() == 1

    open_page(page, address)
    page.locator("#pictures", has_text="zab").wait_for()
    page.locator("#undo", has_text="Replaced: zib by zab").click()
    page.locator("#redo", has_text="Replaced: zib by zab").wait_for()
    page.wait_for_function("!document.querySelector('#pictures').innerText.includes('zab')")
    page.locator("#pictures", has_text="a zib robot, night").wait_for()
    page.keyboard.press("Control+z")
    page.wait_for_function("!document.querySelector('#pictures').innerText.includes('night')")
    page.locator("#pictures", has_text=before).wait_for()

    page.locator("#pictures .thumbnail").first.click()
    shows(page, "#caption-text", before)
    page.wait_for_function("!!window.tellCaption")  # the field listens
    caption.fill("typed at the last moment")
    open_page(page, address)
    page.locator("#pictures", has_text="typed at the last moment").wait_for()


def shows(page: Any, place: str, text: str) -> None:
    page.wait_for_function(
        "([place, text]) => document.querySelector(place)?.value === text", arg=[place, text]
    )


def test_a_change_shows_in_the_plan_and_a_wrong_one_turns_red(page: Any, address: str) -> None:
    tab(page, "Method")
    field(page, "train-steps").fill("300")
    plan(page, "300 steps")
    rank = field(page, "method-lora-rank")
    rank.fill("0")
    page.locator(".wrong", has_text="Rank").wait_for()
    page.locator("#why-not", has_text="whole number from 1 to 1024").wait_for()
    assert page.locator("#train").is_disabled()
    rank.fill("8")
    page.locator("#changed", has_text="Rank").wait_for()
    page.locator(".wrong").first.wait_for(state="detached")
    page.get_by_role("button", name="Undo Rank").click()
    page.locator("#changed", has_text="Rank").wait_for(state="detached")
    holds(page, "method-lora-rank", "16")
    open_page(page, address)
    plan(page, "300 steps")
    tab(page, "Method")
    holds(page, "train-steps", "300")


@pytest.mark.slow
def test_another_card_shows_other_settings_and_another_file(page: Any, address: str) -> None:
    tab(page, "Method")
    page.locator("#file", has_text=re.compile(r"zib-robot\.safetensors, about")).wait_for()
    page.locator("#anatomy rect.lit-attention").first.wait_for()
    before = page.locator("#file .made").inner_text()
    field(page, "method-lora-rank").fill("12")
    page.locator("#changed", has_text="Rank").wait_for()
    chosen = page.locator("#methods .card.chosen")
    page.locator("#methods").get_by_role("button", name=re.compile("^Hypernetwork")).press("Enter")
    page.locator("#file", has_text=re.compile(r"zib-robot\.pt, about")).wait_for()
    assert (
        chosen.inner_text().startswith("Hypernetwork") and page.locator("#file .made").inner_text() != before
    )
    assert page.evaluate("document.activeElement.dataset.kind") == "hypernetwork"
    field(page, "method-hypernetwork-layer_structure").wait_for()
    assert not field(page, "method-lora-rank").is_visible()
    plan(page, "auto: ")
    page.locator("#knob-optim-lr", has_text="Now auto").wait_for()
    page.locator("#methods").get_by_role("button", name=re.compile("^LoRA")).click()
    field(page, "method-lora-rank").wait_for()
    holds(page, "method-lora-rank", "12")
    holds(page, "optim-lr", "0.0006")
    page.locator("#train:enabled").wait_for()
    page.get_by_role("button", name="Undo Rank").click()
    page.locator("#changed", has_text="Rank").wait_for(state="detached")


def test_what_is_typed_while_an_answer_is_on_its_way_stays(page: Any) -> None:
    tab(page, "Method")
    page.locator("#file", has_text=re.compile(r"zib-robot\.safetensors, about")).wait_for()
    steps = field(page, "train-steps")
    before = steps.input_value()
    page.locator("#methods").get_by_role("button", name=re.compile("^LoHa")).click()
    steps.fill("77")  # at once: neither answer is there yet
    page.locator("#methods").get_by_role("button", name=re.compile("^LoKr")).click()
    page.locator("#methods .card.chosen", has_text="LoKr").wait_for()
    plan(page, "77 steps")
    holds(page, "train-steps", "77")
    steps.fill(before)
    page.locator("#methods").get_by_role("button", name=re.compile("^LoRA")).click()
    page.locator("#methods .card.chosen", has_text="LoRA").wait_for()
    plan(page, f"{before} steps")


def test_the_question_mark_lists_the_keys(page: Any) -> None:
    page.locator("#run-state, #found").first.wait_for()
    page.evaluate("document.activeElement?.blur()")
    page.keyboard.press("?")
    page.locator("dialog#keys", has_text="Go to a tab").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog#keys").wait_for(state="hidden")
    page.keyboard.press("3")
    page.locator("#card").wait_for()


def test_memory_is_drawn_as_squares(page: Any) -> None:
    tab(page, "VRAM")
    page.locator("svg.squares rect.part-weights").first.wait_for()
    page.locator("table", has_text="Because").wait_for()
    card = page.locator("#card input")
    card.fill("much")
    card.press("Enter")
    page.locator("#card.wrong", has_text="no size of a card").wait_for()
    card.fill("7.5 GB")
    card.press("Enter")
    page.locator("#vram", has_text="7.1 GB may be used").wait_for()


def test_a_run_is_trained_seen_by_two_pages_stopped_and_found_again(
    page: Any, browser: Any, address: str
) -> None:
    tab(page, "Method")
    field(page, "sample-prompts").fill("a zib robot on a pink background\na red apple")
    page.locator("#train:enabled").click()
    page.locator("#run-state").wait_for()
    page.locator("#newest img").first.wait_for(timeout=TRAIN_SECONDS)
    page.locator("#loss-plot polyline.smooth").wait_for(timeout=TRAIN_SECONDS)
    page.locator(".chip.run", has_text="training").wait_for()

    second = browser.new_page()
    open_page(second, address)
    second.locator("#loss-plot polyline.smooth").wait_for()
    second.locator("#run-state", has_text="Running").wait_for()
    second.close()

    open_page(page, address)  # a reload in the middle
    page.locator("#stop:enabled").click()
    page.locator("#run-state", has_text="Stopped").wait_for(timeout=TRAIN_SECONDS)
    page.locator(".chip.run", has_text="idle").wait_for()

    open_page(page, address)
    tab(page, "Runs")
    card = page.locator(".run-card").first
    card.wait_for()
    assert "Stopped" in card.inner_text()
    card.click()
    link = page.locator("#run-details a", has_text=".safetensors")
    link.wait_for()
    with page.expect_download() as download:
        link.click()
    assert Path(download.value.path()).stat().st_size > 1000
    tab(page, "Gallery")
    page.locator("#grid img").first.wait_for()
    assert page.locator("#grid img").count() >= 2 and page.locator("#grid .sample-row").count() == 2
    page.locator("#before-after img").first.wait_for()


def test_the_result_is_inspected_and_tried(page: Any) -> None:
    tab(page, "Tools")
    choose = page.locator("#inspect-file input")
    choose.click()
    page.get_by_role("option", name=re.compile(r"\.safetensors")).first.click()
    page.locator("#start-inspect").click()
    page.locator("#news-inspect .network rect").first.wait_for(timeout=TRAIN_SECONDS)
    page.locator("#news-inspect", has_text="a LoRA for Stable Diffusion 1").wait_for()
    page.locator("#train-like-this").click()
    page.locator("#told-like-this", has_text="settings, written by sdtrainer, are in the form now").wait_for()
    tab(page, "Runs")
    page.locator(".run-card").first.click()
    page.locator("#try-run").click()
    prompt = page.locator("#sample-prompt textarea")
    page.wait_for_function("document.querySelector('#sample-prompt textarea')?.value.includes('zib')")
    prompt.fill("a zib robot")
    page.get_by_role("button", name="More settings").last.click()
    page.locator("#sample-steps input").fill("2")
    page.locator("#start-sample").click()
    page.locator("#tried img").nth(1).wait_for(timeout=TRAIN_SECONDS)
    page.locator("#tried-slider img").first.wait_for()
    with page.expect_download() as download:
        page.locator("#tried a").click()
    drawn = picture_text.read(picture_text.text_in(Path(download.value.path())))
    assert drawn and (drawn.prompt, drawn.steps, drawn.width) == ("a zib robot", 2, 128)
    assert [adapter.strength for adapter in drawn.adapters] == [1.0]


# -- base models in one file, as other programs write them ------------------------------------------------

CHOSEN = {
    # name of the file: the preset for it, what is said of it, who reads what it makes
    "sd1": (
        "SD 1.5: a subject, 8 GB",
        r"Stable Diffusion 1, 512 px, probably predicts the noise \(epsilon\)",
        "A1111",
    ),
    "sd2": (
        "SD 1.5: a subject, 8 GB",
        r"Stable Diffusion 2, 512 px, probably predicts the noise \(epsilon\)",
        "A1111",
    ),
    "sdxl": (
        "SDXL: a subject, 16 GB",
        r"Stable Diffusion XL, 1024 px, predicts the velocity \(v_prediction\)",
        "A1111",
    ),
    "sd3": (
        "SD 3.5 Medium: a subject, 8 GB",
        r"Stable Diffusion 3.5 Medium, 1024 px, predicts the flow",
        "ComfyUI",
    ),
}


@pytest.fixture(scope="module")
def single_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from test_base_models import write_files

    return write_files(tmp_path_factory.mktemp("single files"))


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.make_images(tmp_path_factory.mktemp("pictures") / "discs", 5)


def enter(page: Any, key: str, value: str) -> None:
    field(page, key).fill(value)
    field(page, key).press("Tab")


def paste(page: Any, folder: Path) -> None:
    """Paste a path as file managers copy it, and stay in the field."""
    box = field(page, "data-folder")
    box.fill(f'"{folder}"')
    box.dispatch_event("paste")


def upload(page: Any, folder: Path) -> None:
    page.get_by_text("Upload a folder, pictures or a ZIP").click()
    page.locator("#drop input").first.set_input_files(folder)
    page.locator("#drop", has_text="you train on that folder now").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_a_model_file_is_chosen_recognised_taught_and_exported(
    page: Any, single_files: dict[str, Path], discs: Path, name: str
) -> None:
    preset, said, reader = CHOSEN[name]
    (upload if name == "sd2" else paste)(page, discs)
    page.locator("#found", has_text="5 images").wait_for()
    tab(page, "Method")
    enter(page, "base-path", str(single_files[name]))
    page.locator("p.found", has_text=re.compile(rf"Recognised.*{said}.*recognised by", re.S)).wait_for()
    choice = page.get_by_label("Preset").first
    choice.fill(preset)
    page.get_by_role("option", name=preset).click()
    page.locator("p.found", has_text="not made for").wait_for(state="detached")
    if name == "sd2":  # a person knows better
        page.locator("#base-model button").first.click()
        field(page, "base-prediction_type").click()
        page.get_by_role("option", name="v_prediction", exact=True).click()
        page.locator("p.found", has_text="predicts the velocity (v_prediction), as you set it").wait_for()
    enter(page, "run-name", f"file-{name}")
    for key, value in (("train-resolution", "64"), ("train-steps", "2"), ("sample-prompts", "a zib disc")):
        enter(page, key, value)
    plan(page, "2 steps")
    page.locator("#train:enabled").click()
    tab(page, "Train")
    state = page.locator("#run-state", has_text=re.compile(rf"file-{name}.*Finished: 2 steps", re.S))
    state.wait_for(timeout=TRAIN_SECONDS)
    page.locator("#newest img").first.wait_for()
    tab(page, "Runs")
    page.locator(".run-card", has_text=f"file-{name}").click()
    page.locator("#run-details a", has_text=f"file-{name}.safetensors").wait_for()
    row = page.locator("#run-details table.readers").get_by_role("row", name=re.compile(f"^{reader}"))
    assert "reads it" in row.inner_text()
