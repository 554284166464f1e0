"""What an adapter file is, told by the names and shapes in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import Trainer
from safetensors.torch import save_file
from test_inspect import Shapes, look

from sdtrainer import families, recognition
from sdtrainer.__main__ import main
from sdtrainer.families import BaseSection
from sdtrainer.section import UserError

# -- adapters --------------------------------------------------------------------------------------

DOWN1 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
DOWN_XL = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


def lora(name: str, width: int, rank: int = 8, out: int = 320) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.lora_down.weight": (rank, width),
        f"{name}.lora_up.weight": (out, rank),
        f"{name}.alpha": (),
    }


TE = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
ADAPTERS: Mapping[str, tuple[Shapes, str, str]] = {
    # name: tensors, kind, base
    "LoRA of SD1": (lora(DOWN1, 768) | lora(TE, 768), "LoRA", "SD1"),
    "LoRA of SD2": (lora(DOWN1, 1024), "LoRA", "SD2"),
    "LoRA of SDXL": (lora(DOWN_XL, 2048), "LoRA", "SDXL"),
    "LoRA of SDXL's text encoders": (lora(TE.replace("te", "te2", 1), 1280), "LoRA", "SDXL"),
    "LoRA of a text encoder": (lora(TE, 1024), "LoRA", "SD2"),
    "DoRA": (lora(DOWN1, 768) | {f"{DOWN1}.dora_scale": (320, 1)}, "DoRA", "SD1"),
    "LoHa": (
        {f"{DOWN_XL}.hada_w{i}_{ab}": shape for i in (1, 2) for ab, shape in
         (("a", (640, 8)), ("b", (8, 2048)))},
        "LoHa", "SDXL",
    ),
    "LoKr": (
        {f"{DOWN1}.lokr_w1": (8, 8), f"{DOWN1}.lokr_w2_a": (40, 8), f"{DOWN1}.lokr_w2_b": (8, 96)},
        "LoKr", "SD1",
    ),
    "LoRA of diffusers": (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight": (8, 2048),
         "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_B.weight": (1280, 8)},
        "LoRA", "SDXL",
    ),
    "LoRA of SD3.5 large": (
        {"transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight": (8, 2432),
         "transformer.transformer_blocks.0.attn.add_q_proj.lora_B.weight": (2432, 8)},
        "LoRA", "SD3.5 large",
    ),
    "LoRA of Flux": (lora("lora_unet_double_blocks_0_img_attn_qkv", 3072), "LoRA", "Flux"),
    "OFT": ({f"{DOWN1}.oft_blocks": (4, 80, 80)}, "OFT adapter", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_told_and_refused_as_base(tmp_path: Path, name: str) -> None:
    shapes, kind, base = ADAPTERS[name]
    found = look(tmp_path, shapes)
    assert found.adapter is not None
    assert (found.kind, found.adapter.kind, found.base) == ("adapter", kind, base)
    assert found.adapter.trains_text_encoder == ("text encoder" in name or name == "LoRA of SD1")
    if kind != "OFT adapter":
        assert found.adapter.ranks == {8: len({n.partition(".")[0] for n in shapes if "lora_te" in n or n})}
    with pytest.raises(UserError, match=f"{kind}.*not a base model"):
        families.recognise(BaseSection(path=str(tmp_path / "file.safetensors")))


def test_an_adapters_alphas_targets_and_words_are_shown(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in (lora(DOWN1, 768, 16) | lora(TE, 768)).items()}
    tensors[f"{DOWN1}.alpha"], tensors[f"{TE}.alpha"] = torch.tensor(8.0), torch.tensor(1.5).bfloat16()
    tags = json.dumps({"10_zib": {"zib": 9, "red": 3}})
    said = {"modelspec.trigger_phrase": "zib robot", "ss_tag_frequency": tags, "ss_num_train_images": "12"}
    save_file(tensors, tmp_path / "a.safetensors", said)
    found = recognition.look(tmp_path / "a.safetensors")
    assert found.adapter is not None
    assert found.adapter.ranks == {16: 1, 8: 1} and found.adapter.alphas == {8.0: 1, 1.5: 1}
    assert found.adapter.targets == {"denoiser": {"attention": 1}, "text encoder": {"attention": 1}}
    assert found.says["trigger words"] == "zib robot" and found.says["images"] == "12"
    assert found.says["most frequent tags"] == "zib, red"


def test_the_files_of_a_run_are_told(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trainer.new(train__steps="1", sample__prompts=[], export__formats=["webui", "diffusers"])
    trainer.run(folder)
    assert main(["inspect", str(folder.path), "--json"]) == 0
    one, two = json.loads(capsys.readouterr().out)["files"]
    for shown, layout in ((one, "diffusers"), (two, "webui")):
        assert (shown["kind"], shown["base"], shown["family"]) == ("adapter", "SD1", "sd")
        assert shown["adapter"]["layout"] == layout and list(shown["adapter"]["ranks"]) == ["2"]
    assert two["adapter"]["alphas"] == {"4.0": sum(two["adapter"]["targets"]["denoiser"].values())}
