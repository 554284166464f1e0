"""Converting: every layout and back gives the same values, and each is read by the program that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from test_sd3 import WITHOUT_T5
from tools import answer, do, far, load, trained

from sdtrainer.families import published
from sdtrainer.formats import whole_model
from sdtrainer.formats.naming import naming_of
from sdtrainer.section import UserError
from sdtrainer.toolbox import adapters
from sdtrainer.toolbox.models import blueprint
from sdtrainer.workspace import Workspace

PIPELINES = {
    "base": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline, "sd3": StableDiffusion3Pipeline,
}  # fmt: skip


WITHOUT = {"sd3": WITHOUT_T5}


def converted(workspace: Workspace, base: Path, file: str, layout: str, **values: Any) -> str:
    return do("convert", workspace, file=file, base=str(base), layout=layout, **values)["path"]


def changes(file: str, base: Path) -> dict[str, torch.Tensor]:
    """The change of each layer that a file stands for, or what comes before DoRA's sizes, and these."""
    from sdtrainer.formats.deferred import now
    from sdtrainer.toolbox.products import factors

    opened = adapters.open_alone(file, str(base))
    found = {}
    for part, path, words in opened.each():
        pair = factors(words)
        assert pair
        found[f"{part}.{path}"] = pair[0].double() @ pair[1].double()
        sizes = [now(words[word]).flatten() for word in ("dora_scale", "magnitude") if word in words]
        found |= {f"{part}.{path}.size": size for size in sizes}
    return found


@pytest.mark.parametrize(
    ("model", "kind", "order"),
    [
        ("base", "lora", ("diffusers", "peft", "comfyui", "kohya")),
        ("base", "dora", ("comfyui", "peft", "diffusers", "kohya")),
        ("sdxl", "dora", ("peft", "kohya", "diffusers", "comfyui")),
        ("sd3", "lora", ("kohya", "peft", "comfyui", "diffusers")),
    ],
)
def test_every_layout_and_the_next_gives_the_same_values(
    model: str,
    kind: str,
    order: tuple[str, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    workspace: Workspace,
) -> None:
    """Bit for bit: alpha / rank is a power of two here. The orders have every pair of neighbours."""
    base = request.getfixturevalue(model)
    path = str(trained(base, tmp_path, kind, rank=4, alpha=2.0)[0])
    wanted = changes(path, base)
    for layout in order:
        path = converted(workspace, base, path, layout)
    found = changes(path, base)
    assert found.keys() == wanted.keys() and len(wanted) > 10
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_other_kinds_go_to_comfyui_and_back_tensor_by_tensor(
    base: Path, tmp_path: Path, workspace: Workspace, kind: str
) -> None:
    file = str(trained(base, tmp_path, kind, own_targets=["*attn2.to_k"])[0])
    there = converted(workspace, base, file, "comfyui")
    before, after = load_file(file), load_file(converted(workspace, base, there, "kohya"))
    assert all(name.startswith(("diffusion_model.", "text_encoders.clip_l.")) for name in load_file(there))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match="LoRA and DoRA alone") as refused:
        converted(workspace, base, file, "diffusers")
    assert refused.value.path == "layout"


@pytest.mark.parametrize(
    ("model", "layout"), [("base", "diffusers"), ("sdxl", "kohya"), ("sd3", "diffusers")]
)
def test_diffusers_loads_what_was_converted(
    model: str,
    layout: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    workspace: Workspace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = request.getfixturevalue(model)
    file, live = trained(base, tmp_path, "lora", rank=3, alpha=2.0)
    there = converted(workspace, base, str(file), "comfyui")
    pipeline = PIPELINES[model].from_pretrained(base, **WITHOUT.get(model, {}))
    caplog.clear()
    pipeline.load_lora_weights(converted(workspace, base, there, layout))
    assert not [r for r in caplog.records if "not" in r.getMessage().lower()], caplog.text
    parts = load(base)
    parts.modules["denoiser"] = pipeline.transformer if model == "sd3" else pipeline.unet
    for part in live.facts.learning_encoders:
        parts.modules[part] = getattr(pipeline, part)
    assert far(answer(parts), answer(live)) < 1e-4 < far(answer(load(base)), answer(live))


def test_peft_loads_what_was_converted(base: Path, tmp_path: Path, workspace: Workspace) -> None:
    from peft import PeftModel

    file, live = trained(base, tmp_path, "dora", rank=4, alpha=6.0)
    folder = Path(converted(workspace, base, str(file), "peft"))
    assert {child.name for child in folder.iterdir()} == {"unet", "text_encoder"}
    parts = load(base)
    for part, name in (("denoiser", "unet"), ("text_encoder", "text_encoder")):
        parts.modules[part] = PeftModel.from_pretrained(parts.modules[part], folder / name).base_model.model
    assert far(answer(parts), answer(live)) < 1e-5 < far(answer(load(base)), answer(live))


@pytest.mark.parametrize("name", ["SD1", "SDXL", "SD3"])
def test_comfyui_knows_every_name_of_the_published_models(name: str) -> None:
    """Of a file with an adapter on every linear layer and convolution."""
    stem = {"SD1": "sd15", "SDXL": "sdxl", "SD3": "sd3"}[name]
    text = (Path(__file__).parent / "keys" / f"{stem}_comfyui.txt").read_text(encoding="utf-8")
    known = {line for line in text.splitlines() if not line.startswith("#")}
    parts = blueprint(published.facts_of(name))
    naming, named = naming_of(parts.facts), set()
    for part in (*parts.facts.learning_encoders, "denoiser"):
        word = {"denoiser": "transformer" if name == "SD3" else "unet"}.get(part, part)
        for path, module in parts.modules[part].named_modules():
            if type(module).__name__ in ("Linear", "Conv2d", "LoRACompatibleLinear"):
                named.add(naming.comfyui(word, path))
    assert len(named) > 200 and named <= known


@pytest.mark.parametrize("model", ["base", "sdxl", "sd3"])
def test_a_model_goes_to_a_file_and_back_without_a_changed_number(
    model: str, request: pytest.FixtureRequest, workspace: Workspace
) -> None:
    folder = request.getfixturevalue(model)
    file = do("convert", workspace, file=str(folder), layout="file")["path"]
    again = do("convert", workspace, file=file, layout="folder")["path"]
    states = [whole_model.states_of(load(Path(path))) for path in (folder, file, again)]
    for part, state in states[0].items():
        for other in states[1:]:
            assert other[part].keys() == state.keys()
            assert all(torch.equal(other[part][name], value) for name, value in state.items())
    PIPELINES[model].from_pretrained(again, **WITHOUT.get(model, {}))


def test_precisions_round_once(base: Path, tmp_path: Path, workspace: Workspace) -> None:
    file = do("convert", workspace, file=str(base), layout="file")["path"]
    half = do("convert", workspace, file=file, precision="fp16", to=str(tmp_path / "half"))["path"]
    assert half.endswith("half.safetensors")
    whole, rounded = load_file(file), load_file(half)
    assert all(torch.equal(rounded[k], v.half()) for k, v in whole.items() if v.is_floating_point())


def test_what_cannot_be_converted_is_refused(base: Path, tmp_path: Path, workspace: Workspace) -> None:
    file = str(trained(base, tmp_path, "lora", own_targets=["*attn2.to_k"])[0])
    other = tmp_path / "notes.safetensors"
    save_file({"emb_params": torch.zeros(2, 768)}, other)
    for values, path, words in (
        (
            {"file": file, "base": str(base), "layout": "folder"},
            "layout",
            "is an adapter, which has no",
        ),
        ({"file": str(base), "layout": "kohya"}, "layout", "is a whole model, which has no"),
        ({"file": file, "base": str(base), "layout": "kohya"}, "layout", "already"),
        ({"file": str(base)}, "layout", "already"),
        ({"file": str(other)}, "file", "neither an adapter nor a whole model"),
        ({"file": str(tmp_path / "gone")}, "file", "nothing at"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            do("convert", workspace, **values)
        assert refused.value.path == path
