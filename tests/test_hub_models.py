"""Base models of the hub: only what is needed is fetched, once, and what is in the way is said."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import Trainer
from fake_hub import FakeHub, running
from safetensors.torch import load_file, save_file

from sdtrainer import families, hub
from sdtrainer.events import Finished, PhaseBegan, Progress
from sdtrainer.families import BaseSection, remote
from sdtrainer.seams import DENOISER, Facts
from sdtrainer.section import UserError

REPO = "some-one/some.model"
PARTS = ("text_encoder/model", "text_encoder_2/model", "unet/diffusion_pytorch_model")
VAE = "vae/diffusion_pytorch_model"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, sdxl: Path) -> Path:
    """A repository as the large ones are: each part in several forms, the VAE in one precision alone."""
    folder = shutil.copytree(sdxl, tmp_path_factory.mktemp("hub") / "repository")
    for part in PARTS:
        weights = folder / f"{part}.safetensors"
        half = {name: value.half() for name, value in load_file(weights).items()}
        save_file(half, weights.with_suffix(".fp16.safetensors"))
        for name in ("pytorch_model.bin", "pytorch_model.fp16.bin", "model.onnx", "flax_model.msgpack"):
            weights.with_name(name).write_bytes(b"x" * 5000)
    (folder / "all-in-one.safetensors").write_bytes(b"x" * 5000)
    return folder


@pytest.fixture
def served(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    remote._sizes.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 20_000)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    with running(FakeHub(REPO, repository), tmp_path / "cache", monkeypatch) as served:
        yield served


def recognised(**base: Any) -> Facts:
    return families.recognise(BaseSection(path=REPO, **base))


def load(facts: Facts) -> dict[str, torch.nn.Module]:
    dtypes = dict.fromkeys(facts.parts, torch.float32)
    return families.family_of(facts).load(facts, facts.parts, dtypes).modules


NEEDED = {f"{VAE}.safetensors", *(f"{part}.fp16.safetensors" for part in PARTS)}


def test_a_run_fetches_what_it_needs_and_tells_how_far_it_is(
    served: FakeHub, repository: Path, trainer: Trainer
) -> None:
    facts = recognised()
    sizes = {name: (repository / name).stat().st_size for name in NEEDED}
    assert (facts.family, facts.layout, facts.download_bytes) == ("sdxl", "hub", sum(sizes.values()))
    assert not {name for name in served.given if name.endswith(".safetensors")}, "nothing is fetched so far"
    values = trainer.values | {"base": {"path": REPO}, "sample": {"prompts": []}}
    runs = Trainer(trainer.workspace, values)
    happened = runs.run(runs.new(train__steps="1", train__validate_every="0"))
    assert isinstance(happened[-1], Finished)
    began = next(event for event in happened if isinstance(event, PhaseBegan))
    assert began.what == f"Downloading {REPO}: {hub.size_words(sum(sizes.values()))}"
    told = [event for event in happened if isinstance(event, Progress) and event.unit == "MB"]
    assert told[-1].done == told[-1].total == 1
    fetched = {name: count for name, count in served.given.items() if not name.endswith((".json", ".txt"))}
    assert fetched == sizes


def test_what_was_fetched_is_used_without_asking_anyone(served: FakeHub, repository: Path) -> None:
    load(recognised())
    before = served.num_requests
    facts = recognised()
    assert facts.download_bytes == 0
    module = load(facts)[DENOISER]
    assert served.num_requests == before
    stored = load_file(repository / f"{PARTS[2]}.fp16.safetensors")
    assert all(torch.equal(value, stored[name].float()) for name, value in module.state_dict().items())


def test_a_download_that_broke_off_goes_on_where_it_stopped(served: FakeHub, repository: Path) -> None:
    facts, unet = recognised(), f"{PARTS[2]}.fp16.safetensors"
    wanted = remote.missing(facts)
    assert set(wanted) == NEEDED
    served.breaks_at = 300_000
    list(remote.fetch(facts, [DENOISER]))
    assert served.given[unet] == wanted[unet], "a lost connection costs nothing that came"
    there = remote.folder_of(facts) / unet
    Path(f"{there}.part").write_bytes(there.read_bytes()[:100_000])  # as a program leaves it that was ended
    there.unlink()
    served.given.clear()
    list(remote.fetch(facts))
    assert served.given[unet] == wanted[unet] - 100_000 and not remote.missing(facts)
    assert there.read_bytes() == (repository / unet).read_bytes()


def test_what_comes_damaged_is_not_kept(served: FakeHub) -> None:
    facts = recognised()
    served.lies = True
    with pytest.raises(UserError, match=r"broke off .* came damaged"):
        list(remote.fetch(facts))
    assert not list(remote.folder_of(facts).rglob("*.part"))
    served.lies = False
    assert load(facts)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((403, "GatedRepo"), "given out only to those who accepted its terms.*hf auth login"),
        ((404, "RepoNotFound"), "the hub does not give it out"),
        ((503, ""), "is not on this machine, and the hub cannot be reached"),
    ],
)
def test_why_the_hub_gives_nothing_is_said(served: FakeHub, refusal: tuple[int, str], words: str) -> None:
    served.refusal = refusal
    with pytest.raises(UserError, match=words) as refused:
        recognised()
    assert refused.value.path == "base.path" and REPO in refused.value.what


def test_without_a_network_what_is_missing_is_said(served: FakeHub) -> None:
    recognised()
    remote._sizes.cache_clear()
    served.refusal = (503, "")
    with pytest.raises(UserError, match="is not on this machine, and the hub cannot be reached"):
        recognised()


def test_a_repository_of_single_files_is_told(served: FakeHub, tmp_path: Path) -> None:
    served.folder = tmp_path / "files"
    served.folder.mkdir()
    (served.folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is no diffusers model.*one \.safetensors file"):
        recognised()


@pytest.mark.parametrize(
    ("path", "is_id"),
    [
        ("a/b", True),
        ("owner/name-1.5", True),
        ("a", False),
        ("a/b/c", False),
        ("./a/b", False),
        ("~/a", False),
    ],
)
def test_an_id_is_told_from_a_path(path: str, is_id: bool, tmp_path: Path, monkeypatch: Any) -> None:
    assert remote.is_id(path) == is_id
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not remote.is_id("a/b"), "a folder that is there is meant"
