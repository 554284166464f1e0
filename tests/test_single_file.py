"""A base model in one file: known by names and shapes, loaded exactly, refused in words where it cannot."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sd15
import tiny
import torch
from conftest import Trainer
from safetensors.torch import load_file, save_file

from sdtrainer import families
from sdtrainer.diffusion import Schedule
from sdtrainer.events import Finished
from sdtrainer.families import ASSETS, BaseSection, single_file
from sdtrainer.formats import ldm, ldm_shapes, whole_model
from sdtrainer.methods.full import METHOD, FullSection
from sdtrainer.recognition import models
from sdtrainer.seams import DENOISER, VAE, ExportOrder, Facts, Parts
from sdtrainer.section import UserError

pytestmark = pytest.mark.usefixtures("offline")

ENCODER = ldm.ENCODER
CAPTION = "a zib disc on a red ground"
TELLING = (models._TELLING, "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias")
"""The weight that tells SD 2.1-v from SD 2.1-base, in the file and in diffusers."""


def recognised(path: Path) -> Facts:
    return families.recognise(BaseSection(path=str(path)))


def load(path: Path, dtype: torch.dtype = torch.float32) -> Parts:
    facts = recognised(path)
    return families.family_of(facts).load(facts, facts.parts, dict.fromkeys(facts.parts, dtype))


def exported(base: Path, folder: Path, precision: Any = "fp32") -> Path:
    order = ExportOrder(folder, "model", precision, ("webui",), {})
    (file,) = METHOD.export(load(base), FullSection(), order)
    return file


def assert_same_model(one: Parts, other: Parts) -> None:
    found, expected = whole_model.states_of(one), whole_model.states_of(other)
    assert found.keys() == expected.keys()
    for part, state in expected.items():
        assert found[part].keys() == state.keys()
        assert all(torch.equal(found[part][name], value) for name, value in state.items()), part
    family = families.family_of(one.facts)
    ids = [family.tokenize(parts, [CAPTION], 1)[ENCODER] for parts in (one, other)]
    assert torch.equal(*ids)
    assert torch.equal(one.schedule.alphas_cumprod, other.schedule.alphas_cumprod)


# -- our own files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny", "as wide as SD2, predicting v", "starter"])
def test_our_own_file_is_the_base_that_it_was_made_from(base: Path, tmp_path: Path, kind: str) -> None:
    paths = {"tiny": base, "starter": ASSETS / "starter-model"}
    path = paths.get(kind) or tiny.make_base(tmp_path / "wide", "v_prediction", width=1024)
    file = exported(path, tmp_path)
    one, other = recognised(file), recognised(path)
    assert one.layout == "file" and "sdtrainer" in one.why
    for fact in ("title", "prediction_type", "resolution", "pixels_per_latent", "text_width", "parts"):
        assert getattr(one, fact) == getattr(other, fact), fact
    assert_same_model(load(file), load(path))


def test_parts_load_alone_frozen_and_in_the_precision_asked_for(base: Path, tmp_path: Path) -> None:
    facts = recognised(exported(base, tmp_path))
    parts = families.family_of(facts).load(facts, (VAE,), {VAE: torch.bfloat16})
    assert parts.modules.keys() == {VAE} and not parts.vae.training
    assert {(p.dtype, p.requires_grad) for p in parts.vae.parameters()} == {(torch.bfloat16, False)}
    assert not families.family_of(facts).load(facts, (), {}).modules


def test_a_run_goes_from_a_single_file_to_the_next(trainer: Trainer, base: Path, tmp_path: Path) -> None:
    file = exported(base, tmp_path)
    values = trainer.values | {"base": {"path": str(file)}, "method": {"kind": "full"}}
    runs = Trainer(trainer.workspace, values)
    folder = runs.new(sample__prompts=[], train__steps="2")
    assert isinstance(runs.run(folder)[-1], Finished)
    result = load(folder.output / "test.safetensors")
    weight = load(base).denoiser.conv_in.weight
    assert weight.shape == result.denoiser.conv_in.weight.shape
    assert not torch.equal(weight, result.denoiser.conv_in.weight)


def test_a_torn_file_is_named(base: Path, tmp_path: Path) -> None:
    file = exported(base, tmp_path)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut short"):
        recognised(file)


def test_a_file_without_some_weights_is_refused(base: Path, tmp_path: Path) -> None:
    file = exported(base, tmp_path)
    metadata = {whole_model.CONFIG_KEY: json.dumps(load(base).facts.config)}
    kept = {k: v for k, v in load_file(file).items() if not k.startswith("first_stage_model.encoder.mid")}
    save_file(kept, file, metadata)
    with pytest.raises(UserError, match="incomplete"):
        load(file)


# -- files of others --------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", [1, 2])
def test_shapes_tell_the_configs_of_the_published_models(tmp_path: Path, generation: int) -> None:
    folder = sd15.write(tmp_path / "model")
    if generation == 2:
        sd15_to_sd21(folder)
    facts = recognised(folder)
    text = ldm.text_layout(facts.text_width)
    states = empty_states(facts)
    file = ldm.to_ldm(states, facts.config, text)
    configs = ldm_shapes.configs_of({name: tuple(t.shape) for name, t in file.items()})
    assert configs is not None
    for part in facts.parts:
        told = {k: v for k, v in facts.config[part].items() if k in configs[part]}
        assert {k: configs[part][k] for k in told} == told and len(told) >= 3
    rebuilt = empty_states(dataclasses.replace(facts, config=configs))
    for part, state in states.items():
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in rebuilt[part].items()}


def empty_states(facts: Facts) -> dict[str, dict[str, torch.Tensor]]:
    """Names and shapes of a model, without values."""
    modules = families.family_of(facts).skeleton(facts)
    return whole_model.states_of(Parts(facts, modules, {}, Schedule(torch.empty(0))))


def sd15_to_sd21(folder: Path) -> None:
    from test_formats_ldm import SD2

    for part, changes in SD2.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def foreign(
    path: Path, width: int = 64, words: int = 100, in_channels: int = 4, spread: float = 0.0,
    scale: float = 1.0, channels: Sequence[int] = (32, 64, 64, 64), metadata: Mapping[str, str] | None = None,
) -> dict[str, dict[str, torch.Tensor]]:  # fmt: skip
    """Write a file as another trainer would: of SD's structure, thin, without a word on how it is built."""
    is_second = width == 1024
    configs: dict[str, dict[str, Any]] = {
        DENOISER: {
            "in_channels": in_channels, "block_out_channels": list(channels), "cross_attention_dim": width,
            "use_linear_projection": is_second, "sample_size": 64,
            "attention_head_dim": [max(1, c // 64) for c in channels] if is_second else 8,
        },
        VAE: {
            "block_out_channels": [32, 32, 32, 32], "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4,
        },
        ENCODER: {
            "vocab_size": words, "hidden_size": width, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": width // 64, "max_position_embeddings": 77,
            "hidden_act": "gelu" if is_second else "quick_gelu",
        },
    }  # fmt: skip
    facts = Facts("sd", "", "", "file", "", "epsilon", 512, 4, 8, width, (ENCODER,), configs)
    generator = torch.Generator().manual_seed(0)
    states = {
        part: {name: scale * torch.randn(value.shape, generator=generator) for name, value in state.items()}
        for part, state in empty_states(facts).items()
    }
    states[DENOISER][TELLING[1]] = torch.linspace(-2, 2, channels[0]) * spread
    file = ldm.to_ldm(states, configs, ldm.text_layout(width)) | {"model_ema.decay": torch.ones(1)}
    save_file({k: v.clone().contiguous() for k, v in file.items()}, path, dict(metadata or {}))
    return states


def test_a_file_of_another_trainer_is_loaded_from_its_shapes(tmp_path: Path) -> None:
    file = tmp_path / "anything.safetensors"
    states = foreign(file, words=single_file.WORDS)
    facts = recognised(file)
    assert (facts.title, facts.prediction_type, facts.resolution) == ("Stable Diffusion 1", "epsilon", 512)
    parts = load(file)
    for part, state in whole_model.states_of(parts).items():
        assert state.keys() == states[part].keys()
        assert all(torch.equal(value, states[part][name]) for name, value in state.items())
    assert parts.denoiser.config.attention_head_dim == 8
    assert len(families.family_of(facts).tokenize(parts, [CAPTION], 1)[ENCODER][0]) == 77


def test_what_a_file_predicts_is_read_or_judged_and_said(tmp_path: Path) -> None:
    said = {"modelspec.prediction_type": "v", "modelspec.resolution": "768x768"}
    cases = [
        ({"spread": 0.05}, "epsilon", 512, "weights"),
        ({"spread": 0.5}, "v_prediction", 768, "weights"),
        ({"spread": 0.0, "metadata": said}, "v_prediction", 768, "says"),
    ]
    for number, (options, prediction, resolution, why) in enumerate(cases):
        file = tmp_path / f"{number}.safetensors"
        foreign(file, width=1024, **options)  # type: ignore[arg-type]
        facts = recognised(file)
        assert facts.title == "Stable Diffusion 2" and why in facts.why
        assert (facts.prediction_type, facts.resolution) == (prediction, resolution)


def test_the_second_generation_pads_with_an_exclamation_mark(tmp_path: Path) -> None:
    file = tmp_path / "two.safetensors"
    foreign(file, width=1024)
    configs = recognised(file).config
    whole = configs | {ENCODER: configs[ENCODER] | {"vocab_size": single_file.WORDS}}
    assert single_file.tokenizers(file, whole, (ENCODER,))[ENCODER].pad_token == "!"


def test_an_inpainting_model_is_refused(tmp_path: Path) -> None:
    foreign(tmp_path / "odd.safetensors", in_channels=9)
    with pytest.raises(UserError, match="inpainting"):
        recognised(tmp_path / "odd.safetensors")


def test_an_unknown_vocabulary_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "odd.safetensors"
    foreign(file)
    with pytest.raises(UserError, match=r"100 words.*diffusers folder"):
        single_file.tokenizers(file, recognised(file).config, (ENCODER,))


def test_a_file_that_is_no_model_is_no_base(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, file)
    with pytest.raises(UserError, match="is a LoRA for a base model"):
        recognised(file)


# -- the second generation ----------------------------------------------------------------------------


def sd2_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Write a small SD2 file as others do: with a last layer that is not used, and more beside the model."""
    monkeypatch.setattr(ldm_shapes, "OPENCLIP_LAYERS", 1)
    monkeypatch.setattr(single_file, "WORDS", 100)
    foreign(path, width=1024, scale=0.05, channels=(64, 64, 64, 64))
    generator, text = torch.Generator().manual_seed(1), ldm.TEXT_PREFIXES["openclip"][ENCODER]
    tensors = load_file(path)
    for name, value in tensors.items():
        if name.startswith((f"{text}transformer.resblocks.1.", f"{text}text_projection")):
            tensors[name] = torch.randn(value.shape, generator=generator).half()
    tensors[f"{text}logit_scale"] = torch.tensor(4.6)
    tensors["alphas_cumprod"] = torch.linspace(1, 0, 1000, dtype=torch.float64)
    save_file(tensors, path)
    return tensors


def test_what_the_model_does_not_hold_is_carried_over_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sd2_file(tmp_path / "two.safetensors", monkeypatch)
    del expected["model_ema.decay"]
    parts = load(tmp_path / "two.safetensors")
    for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        order = ExportOrder(tmp_path, precision, precision, ("webui",), {})  # type: ignore[arg-type]
        (file,) = METHOD.export(parts, FullSection(), order)
        found, held = load_file(file), ldm.unheld(expected, parts.facts.config, "openclip")
        assert found.keys() == expected.keys() and len(held) == 12 + 3
        for name, value in expected.items():
            stored = value if name in held else value.to(dtype)
            assert found[name].dtype == stored.dtype and torch.equal(found[name], stored), name
        promised = METHOD.exported_bytes(parts, FullSection(), precision)  # type: ignore[arg-type]
        assert promised == pytest.approx(file.stat().st_size, rel=0.02)
    assert_same_model(load(tmp_path / "fp32.safetensors"), parts)


def test_a_file_that_is_gone_by_then_costs_nothing_that_was_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sd2_file(tmp_path / "two.safetensors", monkeypatch)
    parts = load(tmp_path / "two.safetensors")
    (tmp_path / "two.safetensors").unlink()
    order = ExportOrder(tmp_path, "new", "fp32", ("webui",), {})
    (file,) = METHOD.export(parts, FullSection(), order)
    assert_same_model(load(file), parts)


def test_the_second_generation_reads_its_text_before_the_last_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sd2_file(tmp_path / "two.safetensors", monkeypatch)
    parts = load(tmp_path / "two.safetensors")
    family = families.family_of(parts.facts)
    ids = family.tokenize(parts, [CAPTION], 1)[ENCODER] % 100  # the encoder has so few words
    monkeypatch.setattr(ldm_shapes, "OPENCLIP_LAYERS", 2)
    whole = load(tmp_path / "two.safetensors").modules[ENCODER]
    with torch.no_grad():
        said = family.encode_text(parts, {ENCODER: ids}, 0, torch.zeros(1, 6)).prompt_embeds
        layers = whole(ids, output_hidden_states=True).hidden_states
        assert len(layers) == 3
        torch.testing.assert_close(said, whole.final_layer_norm(layers[-2]))


# -- memory -------------------------------------------------------------------------------------------


def own_memory() -> int:
    """Bytes of this process that lie in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


class Peak:
    """The most memory of its own that this process had meanwhile, beyond what it had before."""

    def __enter__(self) -> Peak:
        self.before, self.most, self.is_over = own_memory(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.is_over.wait(0.002):
            self.most = max(self.most, own_memory() - self.before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
def test_a_file_is_mapped_and_never_held_twice(tmp_path: Path) -> None:
    """As it is stored a model takes no memory of its own; in another number format what that takes."""
    file = tmp_path / "mid.safetensors"
    foreign(file, words=single_file.WORDS, channels=(64, 192, 384, 384))
    size = file.stat().st_size
    assert size > 100e6
    load(file)  # what is imported and kept by then is not counted
    for dtype, share in ((torch.float32, 0.0), (torch.bfloat16, 0.5)):
        with Peak() as peak:
            parts = load(file, dtype)
        assert parts.denoiser.conv_in.weight.dtype == dtype
        assert peak.most < (share + 0.12) * size
        del parts
