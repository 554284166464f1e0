"""The blocks of a model: every number has one place, and what learns is found where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import sd15
from conftest import Trainer

from sdtrainer import config as configs
from sdtrainer import planner
from sdtrainer.anatomy import totals, where
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.memory import Ledger, estimate
from sdtrainer.methods import METHODS


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("conv_in.weight", ("in", "convolutions")),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", ("down 1", "attention")),
        ("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj.bias", ("down 1", "feed-forward")),
        ("mid_block.resnets.0.conv1.lora_A.default.weight", ("middle", "convolutions")),
        ("up_blocks.3.upsamplers.0.conv.base_layer.weight", ("up 3", "convolutions")),
        ("conv_norm_out.weight", ("out", "convolutions")),
        ("time_embedding.linear_1.weight", ("ends", "others")),
        ("text_model.encoder.layers.11.self_attn.q_proj.weight", ("layer 11", "attention")),
        ("encoder.layers.0.mlp.fc1.weight", ("layer 0", "feed-forward")),
        ("embeddings.token_embedding.weight", ("words", "words")),
    ],
)
def test_a_parameter_lies_where_its_name_says(name: str, place: tuple[str, str]) -> None:
    assert where(name) == place


def test_the_blocks_hold_every_number_of_the_published_model_once(trainer: Trainer, tmp_path: Path) -> None:
    path = sd15.write(tmp_path / "sd15")
    found = planned(trainer, base__path=str(path), method__rank=4, method__train_text_encoder=True).blocks
    totals_of = {part: sum(b.total for b in found if b.part == part) for part in ("denoiser", "text_encoder")}
    assert totals_of == {"denoiser": sd15.UNET, "text_encoder": sd15.TEXT_ENCODER}
    places = list(dict.fromkeys(b.place for b in found if b.part == "denoiser"))
    assert places == [
        "in",
        *(f"down {i}" for i in range(4)),
        "middle",
        *(f"up {i}" for i in range(4)),
        "out",
        "ends",
    ]
    assert {b.place for b in found if b.part == "text_encoder" and b.trained} == {
        f"layer {i}" for i in range(12)
    }
    assert {b.kind for b in found if b.place == "down 3"} == {"convolutions"}  # it has no attention


@pytest.mark.parametrize(
    ("targets", "lit"),
    [
        ("attention", {"attention"}),
        ("attention and feed-forward", {"attention", "feed-forward"}),
        ("with convolutions", {"attention", "feed-forward", "convolutions"}),
    ],
)
def test_only_the_chosen_kinds_of_layers_learn(trainer: Trainer, targets: str, lit: set[str]) -> None:
    ledger = planned(trainer, method__targets=targets)
    assert {kind for kind, _, trained in totals(ledger.blocks) if trained} == lit
    assert sum(b.trained for b in ledger.blocks) == ledger.trained > 0


def planned(trainer: Trainer, **changes: object) -> Ledger:
    return estimate(planner.draft(trainer.config(**changes), trainer.workspace, CPU_ONLY).plan)


@pytest.mark.parametrize("kind", METHODS)
def test_every_trained_number_of_every_method_lies_in_a_block(trainer: Trainer, kind: str) -> None:
    config = configs.build(trainer.values | {"method": {"kind": kind}, "export": {}})
    ledger = estimate(planner.draft(config, trainer.workspace, CPU_ONLY).plan)
    assert sum(b.trained for b in ledger.blocks) == ledger.trained > 0


def test_a_network_before_the_attention_is_seen_there(trainer: Trainer) -> None:
    found = planned(trainer, method__kind="hypernetwork", export__formats=["webui"]).blocks
    lit = {(b.kind, b.place) for b in found if b.trained}
    assert {kind for kind, _ in lit} == {"attention"}
    assert {place for _, place in lit} == {
        b.place for b in found if b.part == "denoiser" and b.kind == "attention"
    }
