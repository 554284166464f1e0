"""Looking deep into a file, changing what it says, and taking over the settings that it was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trainer
from safetensors.torch import load_file, save_file

from sdtrainer import config as configs
from sdtrainer import recognition
from sdtrainer.chores import CHORES, Answer
from sdtrainer.formats import lycoris
from sdtrainer.formats.safetensors_file import read_header, sha256
from sdtrainer.section import UserError, override
from sdtrainer.toolbox import edit, inspect, like
from sdtrainer.workspace import Workspace

DOWN = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
UP = "lora_unet_up_blocks_1_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_1_mlp_fc1"


def do(verb: str, workspace: Workspace, **values: Any) -> Answer:
    """Do a chore to its end, here."""
    chore = CHORES[verb]
    doing = chore.do(chore.check(values), workspace)
    while True:
        try:
            next(doing)
        except StopIteration as end:
            return end.value


def lora(rank: int = 4, alpha: float = 2.0, **layers: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors of a LoRA of three layers, small numbers drawn by chance."""
    g = torch.Generator().manual_seed(1)
    shapes = {DOWN: ((768,), 320), UP: ((64, 3, 3), 32), TEXT: ((768,), 96)}
    tensors: dict[str, torch.Tensor] = {}
    for name, (into, out) in shapes.items():
        ones = (1,) * (len(into) - 1)
        tensors[f"{name}.lora_down.weight"] = torch.randn((rank, *into), generator=g) * 0.02
        tensors[f"{name}.lora_up.weight"] = torch.randn((out, rank, *ones), generator=g) * 0.02
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors | layers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(lora(), tmp_path / "cat.safetensors", {"ss_output_name": "cat", "modelspec.author": "me"})
    return tmp_path / "cat.safetensors"


# -- looking ---------------------------------------------------------------------------------------

G = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=G)


KINDS: Mapping[str, tuple[Mapping[str, torch.Tensor], tuple[int, ...]]] = {
    "LoRA": ({"lora_down": drawn(3, 8), "lora_up": drawn(6, 3), "alpha": torch.tensor(1.5)}, (6, 8)),
    "convolution": ({"lora_down": drawn(3, 8, 3, 3), "lora_up": drawn(6, 3, 1, 1)}, (6, 8, 3, 3)),
    "Tucker": (
        {"lora_down": drawn(3, 8, 1, 1), "lora_up": drawn(6, 3, 1, 1), "lora_mid": drawn(3, 3, 3, 3)},
        (6, 8, 3, 3),
    ),
    "LoHa": (
        {"hada_w1_a": drawn(6, 3), "hada_w1_b": drawn(3, 8), "hada_w2_a": drawn(6, 3),
         "hada_w2_b": drawn(3, 8), "alpha": torch.tensor(2.0)},
        (6, 8),
    ),
    "LoHa, Tucker": (
        {"hada_t1": drawn(3, 3, 3, 3), "hada_w1_a": drawn(3, 6), "hada_w1_b": drawn(3, 8),
         "hada_t2": drawn(3, 3, 3, 3), "hada_w2_a": drawn(3, 6), "hada_w2_b": drawn(3, 8)},
        (6, 8, 3, 3),
    ),
    "LoKr": ({"lokr_w1": drawn(2, 4), "lokr_w2": drawn(3, 2)}, (6, 8)),
    "LoKr, divided": (
        {"lokr_w1": drawn(2, 4), "lokr_w2_a": drawn(3, 2), "lokr_w2_b": drawn(2, 2 * 9)},
        (6, 8, 3, 3),
    ),
    "LoKr, Tucker": (
        {"lokr_w1_a": drawn(2, 1), "lokr_w1_b": drawn(1, 4), "lokr_t2": drawn(2, 2, 3, 3),
         "lokr_w2_a": drawn(2, 3), "lokr_w2_b": drawn(2, 2)},
        (6, 8, 3, 3),
    ),
    "the change itself": ({"diff": drawn(6, 8)}, (6, 8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_change_is_that_of_the_change_made(kind: str) -> None:
    tensors, shape = KINDS[kind]
    change = lycoris.changes(tensors, torch.zeros(shape), None)["weight"]
    assert lycoris.norm(tensors) == pytest.approx(float(change.norm()), rel=1e-4)
    assert lycoris.extent(tensors) == (shape[0], change[0].numel())


def test_every_layer_is_measured_and_broken_ones_are_named(tmp_path: Path, workspace: Workspace) -> None:
    tensors = lora()
    tensors[f"{DOWN}.lora_up.weight"][3, 2] = float("nan")
    tensors[f"{UP}.lora_up.weight"].zero_()
    tensors[f"{TEXT}.lora_up.weight"] *= 1e5
    save_file(tensors, tmp_path / "broken.safetensors")
    answer = do("inspect", workspace, file=str(tmp_path / "broken.safetensors"), deep=True)
    layers = {layer["name"]: layer for layer in answer["files"][0]["layers"]}
    assert {name: layer["state"] for name, layer in layers.items()} == {
        DOWN: "not numbers",
        UP: "dead",
        TEXT: "too large",
    }
    assert (layers[UP]["part"], layers[UP]["place"], layers[UP]["kind"]) == (
        "denoiser",
        "up 1",
        "convolution",
    )
    assert (layers[TEXT]["rank"], layers[TEXT]["alpha"], layers[TEXT]["place"]) == (4, 2.0, "layer 1")
    said = "\n".join(inspect.told(json.loads(json.dumps(answer, allow_nan=False))))
    for name in layers:
        assert "1 of 3 layers" in said and name in said


def test_the_deep_look_tells_tags_hashes_preview_and_training(trainer: Trainer, tmp_path: Path) -> None:
    folder = trainer.new(train__steps="1", sample__prompts=[], data__trigger="zib")
    trainer.run(folder)
    made = next(folder.output.iterdir())
    shown = do("inspect", trainer.workspace, file=str(folder.path), deep=True)["files"][0]
    assert len(shown["layers"]) == sum(shown["adapter"]["targets"]["denoiser"].values())
    assert {layer["rank"] for layer in shown["layers"]} == {2}
    assert shown["hashes"]["AutoV2"] == sha256(made)[:10]
    assert shown["metadata"]["sshs_model_hash"].startswith(shown["hashes"]["AutoV3"])
    assert dict(shown["tags"])["a zib disc"] == 5
    assert shown["like"]["values"]["method.rank"] == 2


# -- changing what it says -------------------------------------------------------------------------


def data_of(file: Path) -> bytes:
    content = file.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_an_edit_leaves_the_tensors_bit_identical_and_the_hashes_right(
    file: Path, workspace: Workspace, images: Path
) -> None:
    before = file.read_bytes()
    answer = do(
        "edit", workspace, file=str(file), title="My cat: großartig", trigger="zib", tags="cat, pet",
        preview=str(images / "00.png"),
    )  # fmt: skip
    new, header = Path(answer["path"]), read_header(Path(answer["path"]))
    assert file.read_bytes() == before and new == workspace.tools / file.name
    assert data_of(new) == data_of(file) and len(data_of(new)) > 1000
    assert load_file(new).keys() == load_file(file).keys()
    says = header.metadata
    assert says["sshs_model_hash"] == sha256(file, tensors_only=True) == sha256(new, tensors_only=True)
    assert says["modelspec.hash_sha256"] == f"0x{says['sshs_model_hash']}"
    assert says["modelspec.title"] == "My cat: großartig" and says["modelspec.tags"] == "cat, pet"
    assert json.loads(says["trained_words"]) == ["zib"] and says["modelspec.trigger_phrase"] == "zib"
    assert says["modelspec.author"] == "me" and says["ss_output_name"] == "cat"  # what was not asked for
    assert says["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert edit.picture_in(says)[:3] == b"\xff\xd8\xff"
    assert recognition.look(new).says["trigger words"] == "zib"


def test_a_dash_empties_an_entry_and_in_place_replaces_the_file(file: Path, workspace: Workspace) -> None:
    data = data_of(file)
    answer = do("edit", workspace, file=str(file), author="-", title="cat", in_place=True)
    assert answer["path"] == str(file) and data_of(file) == data
    assert "modelspec.author" not in read_header(file).metadata
    assert [path.name for path in file.parent.iterdir() if path.suffix == ".safetensors"] == [file.name]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "Nothing is to be changed"),
        ({"title": "x", "to": "{folder}/there.safetensors"}, "exists already"),
        ({"title": "x", "to": "{folder}/cat.safetensors", "overwrite": True}, "is what is read"),
        ({"title": "x", "to": "{folder}/new.safetensors", "in_place": True}, "are both set"),
        ({"title": "x", "file": "{folder}/nothing.safetensors"}, "there is nothing at"),
        ({"title": "x", "file": ""}, "none is given"),
        ({"title": "x", "preview": "{folder}/cat.safetensors"}, "cat.safetensors"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_before_anything_is_written(
    file: Path, workspace: Workspace, values: Mapping[str, Any], said: str
) -> None:
    given = {"file": str(file)} | dict(values)
    given = {k: v.format(folder=file.parent) if isinstance(v, str) else v for k, v in given.items()}
    (file.parent / "there.safetensors").touch()
    before = sorted(path.name for path in file.parent.iterdir())
    with pytest.raises(UserError, match=said):
        do("edit", workspace, **given)
    assert sorted(path.name for path in file.parent.iterdir()) == before


# -- training like it ------------------------------------------------------------------------------


def likeness(tmp_path: Path, metadata: Mapping[str, str], **tensors: torch.Tensor) -> like.Likeness:
    path = tmp_path / "other.safetensors"
    save_file(tensors or lora(), path, dict(metadata))
    return like.of(path)


def test_our_own_files_tell_their_whole_configuration(trainer: Trainer) -> None:
    folder = trainer.new(train__steps="1", sample__prompts=[], optim__weight_decay=0.25)
    trainer.run(folder)
    like_it = like.of(next(folder.output.iterdir()))
    asked, told = configs.flatten(folder.config().values()), like_it.values
    paths = {knob.path for knob in configs.knobs() if knob.is_path}
    assert {k: v for k, v in told.items() if k not in paths} == {
        k: v for k, v in asked.items() if k not in paths
    }
    assert {left.name for left in like_it.left} == {"base.path", "data.folder"}


def test_what_another_version_of_ours_knew_is_named(tmp_path: Path) -> None:
    text = '[base]\nunheard_of = 1\n[method]\nkind = "loha"\nrank = 4\n[train]\nsteps = "77"'
    found = likeness(tmp_path, {"sdtrainer_config": text})
    assert found.values == {"method.kind": "loha", "method.rank": 4, "train.steps": "77"}
    assert [left.name for left in found.left] == ["base.unheard_of"]


KOHYA = {
    "ss_network_module": "networks.lora", "ss_network_args": '{"conv_dim": "2", "conv_alpha": "1"}',
    "ss_output_name": "my: cat", "ss_max_train_steps": "1600", "ss_steps": "800",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.95),eps=1e-07)",
    "ss_unet_lr": "0.0002", "ss_text_encoder_lr": "[5e-05]", "ss_lr_scheduler": "cosine_with_restarts",
    "ss_lr_warmup_steps": "160", "ss_clip_skip": "2", "ss_min_snr_gamma": "None", "ss_noise_offset": "0.05",
    "ss_resolution": "(512, 768)", "ss_seed": "4294967295", "ss_mixed_precision": "bf16",
    "ss_gradient_accumulation_steps": "2", "ss_multires_noise_iterations": "6", "ss_ip_noise_gamma": "None",
    "ss_dataset_dirs": '{"10_zib cat": {"n_repeats": 10, "img_count": 20}}',
    "ss_datasets": '[{"batch_size_per_device": 3, "subsets": [{"keep_tokens": 2, "flip_aug": true}]}]',
    "ss_sd_model_name": "v1-5.safetensors",
}  # fmt: skip


def test_settings_of_sd_scripts_become_ours_and_the_rest_is_named(tmp_path: Path) -> None:
    found = likeness(tmp_path, KOHYA)
    assert found.source == "kohya's sd-scripts"
    assert found.values == {
        "method.kind": "lora", "method.rank": 4, "method.alpha": 2.0, "method.targets": "with convolutions",
        "method.train_text_encoder": True,
        "method.rank_patterns": ["*conv1: 2", "*conv2: 2", "*samplers*conv: 2"],
        "run.name": "my- cat", "train.steps": "1600", "train.batch_size": 3, "train.resolution": 624,
        "train.precision": "bf16", "optim.name": "adamw8bit", "optim.lr": 2e-4,
        "optim.text_encoder_lr": 5e-5, "optim.schedule": "cosine_restarts", "optim.warmup": "160",
        "optim.weight_decay": 0.1, "optim.beta1": 0.9, "optim.beta2": 0.95, "optim.accumulation": 2,
        "noise.min_snr_gamma": 0.0, "noise.offset": 0.05, "base.clip_skip": 1, "data.repeats": 10,
        "data.keep_tags": 2, "data.flip": True,
    }  # fmt: skip
    left = {one.name: one.why for one in found.left}
    assert left.keys() == {
        "train.seed", "ss_multires_noise_iterations", "ss_sd_model_name", "ss_optimizer: eps",
    }  # fmt: skip
    assert "from 0 to 2147483647" in left["train.seed"]


ONETRAINER = {
    "epochs": 100, "batch_size": 4, "learning_rate": 3e-4, "unet": {"learning_rate": None},
    "optimizer": {"optimizer": "PRODIGY", "beta2": 0.99}, "learning_rate_scheduler": "REX",
    "learning_rate_warmup_steps": 0.1, "resolution": "768", "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5, "train_dtype": "BFLOAT_16", "clip_grad_norm": None,
    "layer_filter_preset": "attn-only", "ema": "OFF", "perturbation_noise_weight": 0.1,
}  # fmt: skip


def test_the_configuration_of_onetrainer_becomes_ours(tmp_path: Path) -> None:
    found = likeness(tmp_path, {"ot_config": json.dumps(ONETRAINER), "modelspec.trigger_phrase": "zib, cat"})
    assert found.source == "OneTrainer"
    wanted = {
        "train.steps": "100 epochs", "train.batch_size": 4, "optim.name": "prodigy", "optim.beta2": 0.99,
        "optim.warmup": "10%", "train.resolution": 768, "noise.min_snr_gamma": 5.0,
        "train.precision": "bf16", "optim.max_grad_norm": 0.0, "optim.ema": False,
        "method.targets": "attention", "data.trigger": "zib",
    }  # fmt: skip
    assert wanted.items() <= found.values.items()
    assert "optim.lr" not in found.values  # it finds its own
    assert {one.name for one in found.left} == {"learning_rate_scheduler", "perturbation_noise_weight"}


def test_a_file_that_says_nothing_still_tells_its_method(tmp_path: Path) -> None:
    lokr = {f"{DOWN}.lokr_w1": drawn(4, 4), f"{DOWN}.lokr_w2": drawn(80, 192)}
    assert likeness(tmp_path, {}, **lokr).values == {
        "method.kind": "lokr", "method.targets": "attention", "method.train_text_encoder": False,
    }  # fmt: skip
    toolkit = {"software": '{"name": "ai-toolkit"}', "training_info": '{"step": 3000}', "name": "zib"}
    found = likeness(tmp_path, toolkit)
    assert found.source == "ai-toolkit" and found.values["train.steps"] == "3000"
    with pytest.raises(UserError, match="tells nothing of its training"):
        likeness(tmp_path, {}, weight=torch.zeros(2))


@pytest.mark.parametrize("metadata", [KOHYA, {"ot_config": json.dumps(ONETRAINER)}, {}])
def test_what_is_printed_is_a_run_file(metadata: Mapping[str, str], tmp_path: Path) -> None:
    found = likeness(tmp_path, metadata)
    text = "\n".join(like.told(like.as_values(found)))
    assert configs.build(configs.parse(text, "run.toml")) == configs.build(override({}, found.values))
    for one in found.left:
        assert f"# {one.name} = " in text
