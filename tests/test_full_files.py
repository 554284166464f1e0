"""A fully trained model as a file and as a folder: exact, whole, and read by others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_full import ENCODER, EVERYTHING, attached, load, order, output, weights

from sdtrainer import families, methods
from sdtrainer.families import ASSETS
from sdtrainer.formats import whole_model
from sdtrainer.methods.full import METHOD
from sdtrainer.seams import DENOISER, VAE
from sdtrainer.section import UserError

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
