"""What ComfyUI itself makes of our files: the check before a release, which is docs/readers.md's source.

Takes a checkout of ComfyUI, from SDTRAINER_COMFYUI, and a Python that has what ComfyUI needs as well as what
this app needs; without the former nothing here runs. The models have narrower blocks than the published ones
where ComfyUI does not know the families by their width, and weights by chance. A family takes up to
4 GB.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdtrainer import families
from sdtrainer.bench import models
from sdtrainer.config import build
from sdtrainer.families import BaseSection, published
from sdtrainer.formats import embedding, hypernetwork, whole_model
from sdtrainer.formats.kohya import with_text_model
from sdtrainer.methods import hypernetwork_layers, method_of
from sdtrainer.seams import ExportOrder, LearningRates, Parts

CHECKOUT = os.environ.get("SDTRAINER_COMFYUI", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKOUT, reason="SDTRAINER_COMFYUI names no checkout of ComfyUI"),
]

LAYERS = 2
"""Of each text encoder; ComfyUI makes the others up."""
_THREE = {"num_layers": 4, "num_attention_heads": 4, "caption_projection_dim": 256}
NARROW: Mapping[str, Mapping[str, Any]] = {
    "SD1": {"block_out_channels": [320] * 4},
    "SD2": {"block_out_channels": [320] * 4, "attention_head_dim": [5] * 4},
    "SDXL": {"block_out_channels": [320] * 3, "attention_head_dim": [5] * 3},
    "SD3": _THREE,
    "SD3.5 medium": _THREE | {"dual_attention_layers": [0, 1]},
}
"""What differs from the published denoiser."""

_TWO_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
KNOWN_AS = {"SD1": "SD15", "SD2": "SD20", "SDXL": "SDXL", "SD3": "SD3", "SD3.5 medium": "SD3"}
ENCODERS = {
    "SD1": {"text_encoder": "clip_l"},
    "SD2": {"text_encoder": "clip_h"},
    **{base: _TWO_ENCODERS for base in ("SDXL", "SD3", "SD3.5 medium")},
}
"""What ComfyUI calls families and text encoders."""

ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"kind": "lora", "rank": 4, "alpha": 3.0},
    "lora, other ranks": {"kind": "lora", "rank": 4, "alpha": 2.0, "rank_patterns": ["*ff*: 7"]},
    "rslora": {"kind": "lora", "rank": 4, "alpha": 2.0, "rank_stabilised": True},
    "dora": {"kind": "lora", "rank": 4, "alpha": 2.0, "dora": True},
    "loha": {"kind": "loha", "rank": 3, "alpha": 2.0},
    "lokr, whole": {"kind": "lokr", "factor": 8},
    "lokr, divided": {"kind": "lokr", "full_w2": False, "rank": 4, "alpha": 2.0, "factor": 4},
    "lokr, both divided": {
        "kind": "lokr", "full_w2": False, "rank": 2, "alpha": 3.0, "factor": 16, "decompose_both": True,
    },
    "loha, tucker": {"kind": "loha", "rank": 3, "alpha": 2.0, "tucker": True},
    "lokr, tucker": {"kind": "lokr", "full_w2": False, "rank": 3, "alpha": 2.0, "tucker": True},
}  # fmt: skip
OF_UNETS = ("loha, tucker", "lokr, tucker")
EMBEDDINGS = {
    "SD1": {"clip_l": 768},
    "SD2": {"clip_h": 1024},
    "SDXL and SD3": {"clip_l": 768, "clip_g": 1280},
}


@pytest.fixture(scope="module")
def comfy() -> Any:
    sys.path.insert(0, CHECKOUT)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.sd

    return comfy


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, comfy: Any) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp("models"), comfy)


@pytest.mark.parametrize("base", published.MODELS)
@pytest.mark.parametrize("marks", [(), ("v_pred",), whole_model.MARKS], ids=str)
def test_a_published_model_is_recognised_and_nothing_is_missing_or_left(
    comfy: Any, base: str, marks: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    facts = published.facts_of(base)
    parts = Parts(facts, families.family_of(facts).skeleton(facts), {}, None)  # type: ignore[arg-type]
    file = whole_model.to_file(whole_model.states_of(parts), facts.config)
    if marks and base != "SDXL":
        pytest.skip("marks are SDXL's")
    if base == "SD2":  # by whose spread ComfyUI knows a v-prediction
        name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
        file[name] = 0.2 * torch.randn(file[name].shape)
    file |= {mark: torch.zeros(0) for mark in marks}
    from comfy import model_detection

    prefix = model_detection.unet_prefix_from_state_dict(file)
    config = model_detection.model_config_from_unet(file, prefix)
    with torch.device("meta"):
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model(file, prefix, device="meta")
        model.load_model_weights(file, prefix)
        target, clips = config.clip_target(state_dict=file), config.process_clip_state_dict(file)
        names = set(target.clip(device="meta", dtype=torch.float32, model_options={}).state_dict())
    assert type(config).__name__ == KNOWN_AS.get(base, "SD3")
    flow_or_eps = "FLOW" if base.startswith("SD3") else "EPS"
    assert model.model_type.name == ("V_PREDICTION" if marks or base == "SD2" else flow_or_eps)
    assert bool(config.sampling_settings.get("zsnr")) == ("ztsnr" in marks)
    assert not [record for record in caplog.records if "unet" in record.message]
    needless = ("logit_scale", "clip_l.transformer.text_projection.weight", "position_ids")
    assert not [name for name in names ^ clips.keys() if not name.endswith(needless)]
    assert all(name.startswith("first_stage_model.") or name in marks for name in file)


@pytest.mark.parametrize("pair", NARROW, indirect=True)
def test_comfyui_computes_the_weights_that_we_do(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    is_unet = pair.parts.facts.has_unet
    for name, method in ADAPTERS.items():
        if name in OF_UNETS and not is_unet:
            continue
        caplog.clear()
        file = trained(pair, of_adapter(pair.base, method), name.replace(", ", "-"))
        of_denoiser, of_text, count = differences(pair, file)
        print(f"{pair.base}, {name}: {count} layers, {of_denoiser:.1e}, in fp16 {of_text:.1e}")
        said = [r.message for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
        assert not [line for line in said if "lora" in line.lower() or "ERROR" in line], name
        assert count > 20
        if name != "dora":  # of which ComfyUI takes the base's lengths for those of the sum
            assert of_denoiser < 1e-5 and of_text < 5e-3, name


@pytest.mark.parametrize("family", EMBEDDINGS)
@pytest.mark.parametrize("layout", embedding.ENDINGS)
def test_comfyui_reads_the_vectors_of_an_embedding(
    comfy: Any, tmp_path: Path, family: str, layout: str
) -> None:
    widths = EMBEDDINGS[family]
    vectors = tuple(torch.randn(3, width) for width in widths.values())
    path = tmp_path / f"zib{embedding.ENDINGS[layout]}"
    embedding.write(layout, path, embedding.Embedding("zib", vectors), {})
    for (key, width), mine in zip(widths.items(), vectors, strict=True):
        assert torch.equal(comfy.sd1_clip.load_embed(path.name, [str(tmp_path)], width, key), mine)


@pytest.mark.parametrize("activation", ["linear", "relu", "swish", "mish"])
@pytest.mark.parametrize("norm", [False, True])
def test_comfyui_computes_what_a_hypernetwork_does(
    comfy: Any, tmp_path: Path, activation: Any, norm: bool
) -> None:
    """With layer norms only if the last layer is activated too, as the setting says."""
    from comfy_extras import nodes_hypernetwork

    built = hypernetwork.Architecture((1.0, 2.0, 1.0), activation, norm, norm, (0.0, 0.2, 0.0))
    pair = tuple(hypernetwork_layers.new(built, 320, "XavierNormal").eval() for _ in "kv")
    content = hypernetwork.Hypernetwork(built, {320: (pair[0].state_dict(), pair[1].state_dict())})
    hypernetwork.write(tmp_path / "net.pt", content, "XavierNormal", "fp32", {})
    patch = nodes_hypernetwork.load_hypernetwork_patch(str(tmp_path / "net.pt"), 1.0)
    context = torch.randn(2, 7, 320)
    with torch.no_grad():
        _, *theirs = patch(context, context, context, {})
        for mine, its in zip(pair, theirs, strict=True):
            torch.testing.assert_close(mine(context), its)


class Pair:
    """A base model, ours and what ComfyUI made of its file. `warned` is what ComfyUI had to say of it."""

    def __init__(self, base: str, folder: Path, comfy: Any) -> None:
        self.base, self.folder, self.comfy = base, folder, comfy
        self.parts = made(base, folder / "base")
        self.file = exported(self.parts, {"kind": "full"}, folder, "model", precision="fp16")
        self.model, self.clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(self.file),
            embedding_directory=str(folder),
            model_options={"dtype": torch.float32},
            te_model_options={"dtype": torch.float16},
        )
        comfy.model_management.unload_all_models()  # what is on the device is not patched again
        self.parts.denoiser.float()
        self.before = weights(self.parts, base)

    def fresh(self) -> Parts:
        return replace(self.parts, modules=copy.deepcopy(self.parts.modules))


def made(base: str, folder: Path) -> Parts:
    """A narrow model of a family with few text layers, of random weights in fp16."""
    configs = dict(published.MODELS[base])
    name = next(name for name in configs if name.startswith(("unet/", "transformer/")))
    configs[name] = {**configs[name], **NARROW[base]}
    for encoder in ENCODERS[base]:
        configs[f"{encoder}/config.json"] = {**configs[f"{encoder}/config.json"], "num_hidden_layers": LAYERS}
    models.write_configs(configs, folder)
    facts = families.recognise(BaseSection(path=str(folder)))
    family = families.family_of(facts)
    parts = family.load(facts, (), {})
    pool = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).half()
    for part, module in family.skeleton(facts).items():
        fill(module, pool)
        parts.modules[part] = module.requires_grad_(False).eval()
    return parts


def fill(module: torch.nn.Module, pool: torch.Tensor) -> None:
    """Cut each weight of a module on the meta device out of the same numbers, at places of its own."""
    place = 0
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            place = (place + 7919) % len(pool)
            count = -(-parameter.numel() // len(pool))
            numbers = pool.roll(-place).repeat(count)[: parameter.numel()].reshape(parameter.shape)
            is_scale = name == "weight" and parameter.ndim == 1
            setattr(owner, name, torch.nn.Parameter(numbers + 1 if is_scale else numbers))
        for name, buffer in owner.named_buffers(recurse=False):
            held = torch.arange(buffer.shape[-1]).expand(buffer.shape).to(buffer.dtype).contiguous()
            setattr(owner, name, held)


def exported(
    parts: Parts, method: Mapping[str, Any], folder: Path, name: str, layout: str = "webui",
    precision: str = "fp32",
) -> Path:  # fmt: skip
    section = build({"method": dict(method)}).method
    order = ExportOrder(folder, name, precision, (layout,), {})  # type: ignore[arg-type]
    return method_of(section.kind).export(parts, section, order)[0]


def trained(pair: Pair, method: Mapping[str, Any], name: str, layout: str = "webui") -> Path:
    """A file of this method as after training, with numbers by chance."""
    section, parts = build({"method": dict(method)}).method, pair.fresh()
    generator = torch.Generator().manual_seed(1)
    for group in method_of(section.kind).attach(parts, section, LearningRates(1.0, 1.0)):
        for parameter in group.parameters:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return exported(parts, method, pair.folder, name, layout)


def of_adapter(base: str, method: Mapping[str, Any]) -> dict[str, Any]:
    is_unet = base in ("SD1", "SD2", "SDXL")
    layers = "with convolutions" if is_unet else "attention and feed-forward"
    return {**method, "targets": layers, "train_text_encoder": True}


def weights(parts: Parts, base: str) -> dict[str, torch.Tensor]:
    """Our weights under ComfyUI's names."""
    file = whole_model.to_file({**whole_model.states_of(parts)}, parts.facts.config)
    found = {k.removeprefix("model."): v for k, v in file.items() if k.startswith("model.diffusion_model.")}
    for encoder, name in ENCODERS[base].items():
        for key, value in parts.modules[encoder].state_dict().items():
            found[f"{name}.transformer.{with_text_model(key)}"] = value
    return found


def patched(pair: Pair, file: Path) -> dict[str, torch.Tensor]:
    """The weights that ComfyUI computes with an adapter of strength 1."""
    adapter = pair.comfy.utils.load_torch_file(str(file), safe_load=True)
    model, clip = pair.comfy.sd.load_lora_for_models(pair.model, pair.clip, adapter, 1.0, 1.0)
    found = {}
    for patcher in (model, clip.patcher):
        patcher.patch_model(device_to=torch.device("cpu"))
        found |= {key: value.clone() for key, value in patcher.model_state_dict().items()}
        patcher.unpatch_model(device_to=torch.device("cpu"))
    return found


def differences(pair: Pair, file: Path) -> tuple[float, float, int]:
    """How far ComfyUI's weights with an adapter are from ours, against the largest change of the layer: the
    worst layer of the denoiser and of the text encoders (in fp16); and how many layers are changed.
    """
    theirs = patched(pair, file)
    fresh = pair.fresh()
    for encoder in ENCODERS[pair.base]:
        fresh.modules[encoder].float()
    method = next(m for m in map(method_of, ("lora", "loha", "lokr")) if m.reads(file))
    method.put_on(fresh, file, 1.0)
    ours = weights(fresh, pair.base)
    worst, count = {True: 0.0, False: 0.0}, 0
    for name, weight in ours.items():
        if name not in theirs:
            assert "text_projection" in name or "position_ids" in name, name
            continue
        change = (weight.float() - pair.before[name].float()).abs().max()
        apart = (theirs[name].float() - weight.float()).abs().max()
        if change == 0:
            assert apart == 0, name
            continue
        count += 1
        is_denoiser = name.startswith("diffusion_model.")
        worst[is_denoiser] = max(worst[is_denoiser], float(apart / change))
    return worst[True], worst[False], count
