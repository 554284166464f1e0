"""LoRA files against their readers: diffusers' own loader on a tiny real pipeline, an independent merge, and
the module names that ComfyUI accepts on the full-size model."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from sdtrainer.formats import adapter_file, diffusers_names, kohya, lycoris, readers, safetensors_file
from sdtrainer.formats.kohya import LoraTensors
from sdtrainer.formats.naming import SD_NAMING, Naming
from sdtrainer.section import UserError

UNET_TARGETS = (
    r".*\.(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2|conv_shortcut|"
    r"time_emb_proj|(down|up)samplers\.0\.conv)|conv_in|conv_out|time_embedding\.linear_\d"
)
TEXT_TARGETS = r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
_LINES = (Path(__file__).parent / "keys/sd15_lora.txt").read_text().splitlines()
KEYS = {line for line in _LINES if not line.startswith("#")}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=77,
        )
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=None, unet=unet, scheduler=DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


class Trained:
    """Copies of a pipeline's parts with live peft adapters; rank and alpha differ among modules."""

    def __init__(
        self, pipeline: StableDiffusionPipeline, alphas: tuple[float, float, float], dora: bool = False
    ):
        self.unet, self.text_encoder = copy.deepcopy(pipeline.unet), copy.deepcopy(pipeline.text_encoder)
        attention, conv, text = alphas
        is_conv = r".*(conv1|conv2|conv_shortcut|conv_in|conv_out|samplers\.0\.conv)"
        inject_adapter_in_model(
            LoraConfig(
                r=4, lora_alpha=attention, target_modules=UNET_TARGETS, rank_pattern={is_conv: 2},
                alpha_pattern={is_conv: conv}, use_dora=dora,
            ),
            self.unet,
        )  # fmt: skip
        inject_adapter_in_model(
            LoraConfig(r=3, lora_alpha=text, target_modules=TEXT_TARGETS, use_dora=dora), self.text_encoder
        )
        generator = torch.Generator().manual_seed(1)
        for name, p in [*self.unet.named_parameters(), *self.text_encoder.named_parameters()]:
            if "lora_B" in name:
                p.data = 0.3 * torch.randn(p.shape, generator=generator)
            if "lora_magnitude" in name:
                p.data = p.data * 1.1

    def adapters(self) -> dict[str, dict[str, LoraTensors]]:
        return {"unet": read_peft(self.unet), "text_encoder": read_peft(self.text_encoder)}

    def outputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        return outputs(self.unet, self.text_encoder)


def read_peft(module: torch.nn.Module) -> dict[str, LoraTensors]:
    found = {}
    for path, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
            scale = None
            if layer.use_dora["default"]:
                scale = (
                    layer.lora_magnitude_vector["default"].weight.detach().reshape(-1, *[1] * (down.ndim - 1))
                )
            found[path] = LoraTensors(down, up, float(layer.lora_alpha["default"]), scale)
    assert len(found) > 10
    return found


@torch.no_grad()
def outputs(unet: torch.nn.Module, text_encoder: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = text_encoder(torch.arange(77)[None] % 99).last_hidden_state
    latents, t = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([500])
    context = torch.randn(1, 7, 16, generator=generator)
    return unet(latents, t, context).sample, hidden


def assert_same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


ALPHAS = pytest.mark.parametrize("alphas", [(4.0, 2.0, 3.0), (8.0, 1.0, 0.5)], ids=["plain", "scaled"])


@ALPHAS
@pytest.mark.parametrize("layout", ["webui", "diffusers"])
def test_diffusers_loads_what_was_trained(pipeline, tmp_path, alphas, layout, caplog):
    trained = Trained(pipeline, alphas)
    path = export(trained, layout, tmp_path)
    fresh = copy.deepcopy(pipeline)
    before = outputs(fresh.unet, fresh.text_encoder)
    fresh.load_lora_weights(str(path))
    assert_same(outputs(fresh.unet, fresh.text_encoder), trained.outputs())
    assert all((x - y).abs().max() > 0.01 for x, y in zip(before, trained.outputs(), strict=True))
    assert not caplog.records, caplog.text


@ALPHAS
def test_an_independent_merge_of_the_kohya_file_equals_what_was_trained(pipeline, tmp_path, alphas):
    trained = Trained(pipeline, alphas)
    state = load_file(export(trained, "webui", tmp_path))
    fresh = copy.deepcopy(pipeline)
    left = set(state)
    for prefix, module in (("lora_unet_", fresh.unet), ("lora_te_text_model_", fresh.text_encoder)):
        for path, layer in module.named_modules():
            name = prefix + path.removeprefix("text_model.").replace(".", "_")
            if f"{name}.lora_down.weight" not in state:
                continue
            down, up, alpha = (
                state[f"{name}.{kind}"] for kind in ("lora_down.weight", "lora_up.weight", "alpha")
            )
            delta = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape) * alpha / down.shape[0]
            layer.weight.data += delta
            left -= {f"{name}.{kind}" for kind in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert not left
    assert_same(outputs(fresh.unet, fresh.text_encoder), trained.outputs())


def test_the_diffusers_layout_needs_no_header_to_have_the_right_strength(pipeline, tmp_path):
    """Readers without the header take alpha = rank."""
    trained = Trained(pipeline, (8.0, 1.0, 0.5))
    state = load_file(export(trained, "diffusers", tmp_path))
    fresh = copy.deepcopy(pipeline)
    fresh.load_lora_weights(state)
    assert_same(outputs(fresh.unet, fresh.text_encoder), trained.outputs())


def test_dora_in_the_diffusers_layout_is_loaded_as_trained(pipeline, tmp_path):
    trained = Trained(pipeline, (4.0, 2.0, 3.0), dora=True)
    path = export(trained, "diffusers", tmp_path)
    fresh = copy.deepcopy(pipeline)
    fresh.load_lora_weights(str(path))
    assert_same(outputs(fresh.unet, fresh.text_encoder), trained.outputs())


def test_reading_a_kohya_file_gives_back_the_adapters(pipeline):
    trained = Trained(pipeline, (8.0, 1.0, 0.5), dora=True)
    adapters = trained.adapters()
    paths = {
        "unet": [n for n, _ in pipeline.unet.named_modules()],
        "text_encoder": [n for n, _ in pipeline.text_encoder.named_modules()],
    }
    state = kohya.to_kohya(adapters, SD_NAMING)
    again = {k.replace("lora_te_", "lora_te1_"): v for k, v in state.items()}
    for read in (adapter_file.read(state, paths), adapter_file.read(again, paths)):
        assert {part: set(a) for part, a in read.items()} == {part: set(a) for part, a in adapters.items()}
        for part, adapter in adapters.items():
            for path, lora in adapter.items():
                back = read[part][path]
                assert torch.equal(back["lora_down"], lora.down) and torch.equal(back["lora_up"], lora.up)
                assert back["alpha"] == lora.alpha and torch.equal(back["dora_scale"], lora.dora_scale)


def test_a_missing_alpha_is_the_rank():
    state = {
        "lora_unet_a_b.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_a_b.lora_up.weight": torch.zeros(8, 4),
    }
    read = adapter_file.read(state, {"unet": ["a.b"], "text_encoder": []})
    assert lycoris.scale(read["unet"]["a.b"]) == 1


@pytest.mark.parametrize(
    "extra", ["lora_unet_x_y.alpha", "lora_unet_a_c.lora_mid.weight", "lora_unet_a_b.a1.weight", "strange"]
)
def test_entries_that_fit_nothing_are_named(extra):
    state = {
        "lora_unet_a_b.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_a_b.lora_up.weight": torch.zeros(8, 4),
    }
    with pytest.raises(UserError, match=extra.split(".")[0]):
        adapter_file.read(state | {extra: torch.zeros(1)}, {"unet": ["a.b"], "text_encoder": []})


def test_sdxl_has_a_prefix_per_encoder():
    lora = LoraTensors(torch.zeros(2, 4), torch.zeros(4, 2), 1.0)
    path = "text_model.encoder.layers.0.mlp.fc1"
    naming = Naming(kohya.SDXL_PREFIXES)
    state = kohya.to_kohya({"text_encoder": {path: lora}, "text_encoder_2": {path: lora}}, naming)
    assert {k.split("_text_model")[0] for k in state} == {"lora_te1", "lora_te2"}
    read = adapter_file.read(state, {"text_encoder": [path], "text_encoder_2": [path]}, naming)
    assert set(read) == {"text_encoder", "text_encoder_2"}


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_model_is_always_in_the_name(prefix):
    lora = LoraTensors(torch.zeros(2, 4), torch.zeros(4, 2), 1.0)
    adapters = {"text_encoder": {f"{prefix}encoder.layers.0.mlp.fc1": lora}}
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert set(kohya.to_kohya(adapters, SD_NAMING)) == {
        f"{name}.lora_down.weight",
        f"{name}.lora_up.weight",
        f"{name}.alpha",
    }
    state, metadata = diffusers_names.to_diffusers(adapters)
    assert all(k.startswith("text_encoder.text_model.encoder.layers.0.mlp.fc1.") for k in state)
    config = json.loads(metadata[diffusers_names.METADATA_KEY])
    assert config["text_encoder.target_modules"] == ["encoder.layers.0.mlp.fc1"]


def test_every_module_of_full_size_sd15_has_a_name_that_comfyui_knows():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    adapters = {}
    for part, module, targets in (("unet", unet, UNET_TARGETS), ("text_encoder", text, TEXT_TARGETS)):
        inject_adapter_in_model(LoraConfig(r=4, target_modules=targets), module, low_cpu_mem_usage=True)
        adapters[part] = read_peft(module)

    def modules(state):
        return {re.sub(r"\.(lora_(down|up|A|B)\.weight|alpha)$", "", key) for key in state}

    named = modules(kohya.to_kohya(adapters, SD_NAMING))
    # 16 transformers x (8 attention + 2 feed-forward + 2 projections), 22 resnets x 3 and 14 shortcuts, 3 + 3
    # samplers, conv_in, conv_out, 2 time embeddings; 12 text layers x 6
    assert len(named) == 16 * 12 + 22 * 3 + 14 + 6 + 4 + 72
    assert named <= KEYS
    assert {k for k in KEYS if k.startswith("lora_")} == named, "this test leaves a layer out"
    unread = modules(diffusers_names.to_diffusers(adapters)[0]) - KEYS
    assert len(unread) == 16 * 8 and all(".attn" in name for name in unread)
    (row,) = [r for r in readers.readers_of("lora", "sd", "diffusers") if r.program == "ComfyUI"]
    assert row.reads == "no", "ComfyUI does not know the attention layers in the diffusers layout"


def export(trained: Trained, layout: str, folder: Path) -> Path:
    adapters, metadata = trained.adapters(), {}
    if layout == "webui":
        state = kohya.to_kohya(adapters, SD_NAMING)
    else:
        state, metadata = diffusers_names.to_diffusers(adapters)
    path = folder / f"{layout}.safetensors"
    safetensors_file.write(path, state, metadata, "fp32")
    return path
