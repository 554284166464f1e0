"""Hypernetworks from attachment to file: what A1111 and ComfyUI read in it is what was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import Killed, Trainer
from safetensors.torch import load_file
from test_methods import load, prediction

from sdtrainer import families
from sdtrainer.config import build
from sdtrainer.events import Saved, Validated
from sdtrainer.families import BaseSection
from sdtrainer.formats import hypernetwork as layout
from sdtrainer.formats import legacy_pt
from sdtrainer.methods import hypernetwork_layers as layers
from sdtrainer.methods.hypernetwork import METHOD, HypernetworkSection, architecture_of
from sdtrainer.result import config_inside
from sdtrainer.seams import ExportOrder, LearningRates, Parts
from sdtrainer.section import UserError
from sdtrainer.training import checkpoint
from sdtrainer.workspace import RunFolder

RATES = LearningRates(1e-2, 1e-2)
KINDS = {
    "plain": HypernetworkSection(),
    "relu": HypernetworkSection(activation="relu", layer_structure="1, 2, 2, 1"),
    "everything": HypernetworkSection(
        layer_structure="1, 1.5, 2, 1",
        activation="leakyrelu",
        activate_output=True,
        layer_norm=True,
        dropout=0.2,
    ),
    "norm": HypernetworkSection(layer_norm=True, dropout=0.3, activation="mish"),
    "inner dropout": HypernetworkSection(
        layer_structure="1, 2, 0.5, 1", activation="swish", dropout=0.3, last_layer_dropout=False
    ),
    "learnt slope": HypernetworkSection(activation="prelu", widths="text"),
}
SECTIONS = pytest.mark.parametrize("section", KINDS.values(), ids=KINDS)
COMFY = ("linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish")


def attached(base: Path, section: HypernetworkSection, spread: float = 0.1) -> Parts:
    """Parts whose networks hold random numbers, as after training."""
    parts = load(base)
    (group,) = METHOD.attach(parts, section, RATES)
    torch.manual_seed(1)
    for parameter in group.parameters:
        torch.nn.init.normal_(parameter, std=spread)
    return parts


def output(parts: Parts) -> torch.Tensor:
    with torch.no_grad():
        return prediction(parts)


def order(folder: Path, precision: str = "fp32") -> ExportOrder:
    return ExportOrder(folder, "result", precision, ("webui",), {"ss_note": "test"})  # type: ignore[arg-type]


def exported(parts: Parts, section: HypernetworkSection, folder: Path, precision: str = "fp32") -> Path:
    (file,) = METHOD.export(parts, section, order(folder, precision))
    return file


def stored_in(file: Path) -> list[torch.Tensor]:
    found = [t for pair in layout.read(file).networks.values() for state in pair for t in state.values()]
    assert found
    return found


def drawn_with(base: Path, file: Path, strength: float = 1.0) -> torch.Tensor:
    fresh = load(base)
    METHOD.put_on(fresh, file, strength)
    return output(fresh)


# -- what is attached -------------------------------------------------------------------------------


@pytest.mark.parametrize(("widths", "found"), [("all", [16, 32]), ("text", [32]), ("image", [16, 32])])
def test_widths_are_those_of_the_base(base: Path, widths: Any, found: list[int]) -> None:
    """The tiny base reads texts 32 wide and pictures 16 and 32 wide."""
    parts = load(base)
    (group,) = METHOD.attach(parts, HypernetworkSection(widths=widths), RATES)
    networks = parts.denoiser.get_submodule(layers.NAME)
    assert list(networks.by_width()) == found
    assert all(p.requires_grad and p.dtype is torch.float32 for p in group.parameters)
    assert group.lr == RATES.denoiser


def test_a_network_serves_every_attention_of_its_width_and_no_other(base: Path) -> None:
    parts = load(base)
    METHOD.attach(parts, HypernetworkSection(widths="text"), RATES)
    seen = set()
    for path, layer in parts.denoiser.named_modules():
        if path.endswith((".to_q", ".to_k", ".to_v")):
            seen.add((path.rpartition(".")[2], layer.in_features, len(layer._forward_pre_hooks)))
    assert {hooks for name, width, hooks in seen if name != "to_q" and width == 32} == {1}
    assert {hooks for name, width, hooks in seen if name == "to_q" or width != 32} == {0}


def test_keys_and_values_go_through_networks_of_their_own(base: Path) -> None:
    """A network of zeros is no change: of a pair, each changes the output by itself."""
    outputs = [output(load(base))]
    for silent in ((0, 1), (0,), (1,), ()):
        parts = attached(base, KINDS["plain"])
        for pair in parts.denoiser.get_submodule(layers.NAME).by_width().values():
            for which in silent:
                for parameter in pair[which].parameters():
                    torch.nn.init.zeros_(parameter)
        outputs.append(output(parts))
    assert torch.equal(outputs[0], outputs[1])
    assert len({tensor.sum().item() for tensor in outputs}) == 4


def test_normal_begins_near_the_base_and_the_others_far_from_it(base: Path) -> None:
    assert not METHOD.starts_as_base
    before, changes = output(load(base)), {}
    for init in get_args(layout.WeightInit):
        torch.manual_seed(0)
        parts = load(base)
        METHOD.attach(parts, HypernetworkSection(weight_init=init), RATES)
        changes[init] = ((output(parts) - before).abs().max() / before.abs().max()).item()
    assert 0 < changes.pop("Normal") < 0.01
    assert len(changes) == 4 and all(0.1 < change < 10 for change in changes.values())


@pytest.mark.parametrize("init", get_args(layout.WeightInit))
def test_random_weights_have_the_spread_of_their_rule(init: str) -> None:
    torch.manual_seed(0)
    ramped = layout.Architecture((1, 2, 1), activation="leakyrelu", layer_norm=True)
    first, _, norm, last, *_ = layers.new(ramped, 200, init).linear
    slope = 2 / (1 + 0.01**2)
    spread = {
        "Normal": (0.01, 0.01),
        "Xavier": ((2 / 600) ** 0.5, (2 / 600) ** 0.5),
        "Kaiming": ((slope / 200) ** 0.5, (slope / 400) ** 0.5),
    }[init.removesuffix("Uniform").removesuffix("Normal") or init]
    for layer, expected in zip((first, last), spread, strict=True):
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert norm.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert not first.bias.any() and not last.bias.any() and not norm.bias.any()


def test_every_activation_works_and_those_of_comfyui_come_first(base: Path) -> None:
    names = get_args(layout.Activation)
    assert names[:9] == COMFY and len(names) == len(set(names)) == 23
    torch_names = {name.lower() for name in vars(torch.nn.modules.activation)} | {"swish", "linear"}
    assert set(names) <= torch_names
    context = torch.randn(2, 5, 8, requires_grad=True)
    for name in names:
        network = layers.new(layout.Architecture(activation=name), 8, "XavierNormal")
        assert network(context).shape == context.shape
        network(context).sum().backward()
        alone = torch.cat([network.eval()(context[:1]), network(context[1:])])
        torch.testing.assert_close(network(context), alone, msg=name)  # pictures of a batch do not mix


def test_a_base_in_half_precision_keeps_its_precision(base: Path, tmp_path: Path) -> None:
    file = exported(attached(base, KINDS["norm"]), KINDS["norm"], tmp_path)
    parts = load(base)
    parts.denoiser.to(torch.bfloat16)
    METHOD.put_on(parts, file, 1.0)
    seen = []
    for attention in layers.attentions(parts.denoiser):
        attention.to_k.register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
    parts.denoiser(torch.randn(1, 4, 8, 8).bfloat16(), 5, torch.randn(1, 77, 32).bfloat16())
    assert seen and set(seen) == {torch.bfloat16}


# -- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["1,2,1", " 1, 2.0 ,1 ", "[1, 2, 1]", [1, 2, 1], [1.0, 2, 1]])
def test_a_layer_structure_is_written_in_any_way(given: Any) -> None:
    section = build({"method": {"kind": "hypernetwork", "layer_structure": given}}).method
    assert section.layer_structure == "1, 2, 1" and architecture_of(section).factors == (1, 2, 1)


@pytest.mark.parametrize(
    "given", ["", "1", "2, 1", "1, 2", "1, 0, 1", "1, x, 1", "1, 99, 1", "1, nan, 1", []]
)
def test_other_layer_structures_are_refused_by_name(given: Any) -> None:
    with pytest.raises(UserError, match=r"Layer structure \(method\.layer_structure\) is .*1, 2, 1"):
        build({"method": {"kind": "hypernetwork", "layer_structure": given}})


@pytest.mark.parametrize(
    "changes",
    [{"activation": "softmax"}, {"weight_init": "Zero"}, {"widths": "both"}, {"dropout": 1.0}],
    ids=str,
)
def test_other_values_are_refused_by_name(changes: dict[str, Any]) -> None:
    (path,) = changes
    with pytest.raises(UserError, match=rf"\(method\.{path}\) is .* Allowed: "):
        build({"method": {"kind": "hypernetwork"} | changes})


def test_other_families_are_refused(base: Path) -> None:
    facts = families.recognise(BaseSection(path=str(base)))
    METHOD.suits(HypernetworkSection(), facts)
    with pytest.raises(UserError, match="needs Stable Diffusion 1 or 2, and the base is Stable Diffusion XL"):
        METHOD.suits(HypernetworkSection(), replace(facts, family="sdxl", title="Stable Diffusion XL"))


def test_dropout_without_a_place_is_refused_before_anything_loads(trainer: Trainer) -> None:
    for place in ({"last_layer_dropout": False}, {"layer_structure": "1, 1"}):
        settings = {f"method__{name}": value for name, value in place.items()}
        with pytest.raises(UserError, match=r"Dropout is 0\.3, but Layer structure 1, .* has no place"):
            trainer.run(trainer.new(method__kind="hypernetwork", method__dropout=0.3, **settings))


# -- continuing from a file -------------------------------------------------------------------------


def test_continuing_starts_where_the_file_ended(base: Path, tmp_path: Path) -> None:
    trained = attached(base, KINDS["relu"])
    file = exported(trained, KINDS["relu"], tmp_path)
    for changes in ({}, {"dropout": 0.5}):  # dropout takes numbers, but holds no weights
        section = KINDS["relu"].model_copy(update={"init_from": str(file)} | changes)
        METHOD.suits(section, trained.facts)
        parts = load(base)
        METHOD.attach(parts, section, RATES)
        assert torch.equal(output(parts), output(trained))


def test_a_file_built_otherwise_is_refused_with_the_setting_to_change(base: Path, tmp_path: Path) -> None:
    parts = attached(base, KINDS["everything"])
    file = exported(parts, KINDS["everything"], tmp_path)
    good = KINDS["everything"].model_copy(update={"init_from": str(file)})
    METHOD.suits(good, parts.facts)
    changes = {
        "layer_structure": "1, 2, 1",
        "activation": "relu",
        "activate_output": False,
        "layer_norm": False,
    }
    for name, value in changes.items():
        with pytest.raises(UserError, match=r"result\.pt has .* and the settings do not") as raised:
            METHOD.suits(good.model_copy(update={name: value}), parts.facts)
        assert raised.value.path == f"method.{name}"
    with pytest.raises(UserError, match="there is no file"):
        METHOD.suits(good.model_copy(update={"init_from": str(tmp_path / "no.pt")}), parts.facts)


def test_a_file_without_the_widths_to_train_is_refused(base: Path, tmp_path: Path) -> None:
    narrow = HypernetworkSection(widths="text")
    file = exported(attached(base, narrow), narrow, tmp_path)
    with pytest.raises(UserError, match=r"is for contexts 32 wide, and 16, 32 are to be trained"):
        METHOD.attach(load(base), HypernetworkSection(init_from=str(file)), RATES)


# -- training ---------------------------------------------------------------------------------------

RUN = {"method__kind": "hypernetwork", "method__layer_structure": "1, 2, 2, 1", "method__activation": "relu",
       "method__dropout": 0.2, "optim__lr": 1e-2}  # fmt: skip


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.saved(folder.checkpoints)[-1] / "weights.safetensors")


def test_a_run_trains_the_networks_alone_and_ends_with_a_file_that_draws_what_was_learnt(
    trainer: Trainer, base: Path
) -> None:
    folder = trainer.new(**RUN)
    trainer.run(folder)
    file = folder.output / "test.pt"
    learnt = weights(folder)
    assert learnt and all(name.startswith("denoiser.hypernetwork.pairs.") for name in learnt)
    said = config_inside(file)
    assert said is not None and said.method == trainer.config(**RUN).method and said.data.folder == ""
    assert legacy_pt.read(file)["step"] == 12
    parts = load(base)
    METHOD.attach(parts, said.method, RATES)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in parts.denoiser.get_submodule(layers.NAME).named_parameters():
            parameter.copy_(learnt[f"denoiser.{layers.NAME}.{name}"])
    assert torch.equal(drawn_with(base, file), output(parts))


def test_the_loss_falls(trainer: Trainer) -> None:
    folder = trainer.new(
        **RUN | {"method__dropout": 0.0}, train__steps="60", sample__prompts=[], train__validate_every="60"
    )
    first, last = [event for event in trainer.run(folder) if isinstance(event, Validated)]
    assert last.loss < 0.98 * first.loss


def test_resume_equals_uninterrupted_with_dropout_and_an_average(trainer: Trainer) -> None:
    settings = RUN | {"optim__ema": True, "train__checkpointing": "on", "train__validate_every": "0"}
    settings |= {"train__steps": "4", "checkpoint__every": "2", "sample__prompts": []}
    whole, cut = trainer.new(**settings), trainer.new(**settings)
    trainer.run(whole)

    def kill(event: Any, control: Any) -> None:
        if isinstance(event, Saved):
            raise Killed

    trainer.run(cut, on_event=kill)
    assert trainer.run(cut)[0].step == 2  # type: ignore[attr-defined]
    one, other = weights(whole), weights(cut)
    assert one and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    first, second = (stored_in(folder.output / "test.pt") for folder in (whole, cut))
    assert all(torch.equal(mine, its) for mine, its in zip(first, second, strict=True))


def test_saving_activations_changes_nothing(trainer: Trainer) -> None:
    settings = RUN | {"train__steps": "4", "train__validate_every": "0", "sample__prompts": []}
    plain, saving = (trainer.new(**settings, train__checkpointing=c) for c in ("off", "on"))
    trainer.run(plain)
    trainer.run(saving)
    one, other = weights(plain), weights(saving)
    assert one and all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
