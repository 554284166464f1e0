"""Hypernetworks from attachment to file: what A1111 and ComfyUI read in it is what was trained."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import sd15
import torch
from conftest import Killed, Trainer
from safetensors.torch import load_file
from test_methods import load, prediction

from sdtrainer import families, planner
from sdtrainer.config import build
from sdtrainer.events import Saved, Validated
from sdtrainer.families import BaseSection
from sdtrainer.formats import hypernetwork as layout
from sdtrainer.formats import legacy_pt
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.memory import estimate
from sdtrainer.methods import hypernetwork_layers as layers
from sdtrainer.methods import recognise
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
Networks = dict[int, tuple[Callable[[torch.Tensor], torch.Tensor], ...]]


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


# -- two independent readings of the file -----------------------------------------------------------


def as_a1111(file: Path) -> Networks:
    """Layers are counted as they are described: each linear layer, activation, norm and dropout takes a
    number.
    """
    content = torch.load(file, weights_only=True)
    known = {name.lower(): kind for name, kind in vars(torch.nn.modules.activation).items()}
    known |= {"swish": torch.nn.Hardswish}
    ways, dropout = content["layer_structure"], content["dropout_structure"]

    def network(state: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        left = dict(state)

        def take(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            return left.pop(f"linear.{number}.weight").float(), left.pop(f"linear.{number}.bias").float()

        steps, number = [], 0
        for place in range(1, len(ways)):
            weight, bias = take(number)
            steps.append(lambda x, w=weight, b=bias: x @ w.T + b)
            number += 1
            if content["activation_func"] != "linear" and (
                place < len(ways) - 1 or content["activate_output"]
            ):
                active = known[content["activation_func"]]()
                if slope := left.pop(f"linear.{number}.weight", None):
                    active.load_state_dict({"weight": slope})
                steps.append(active)
                number += 1
            if content["is_layer_norm"]:
                weight, bias = take(number)
                steps.append(lambda x, w=weight, b=bias: torch.layer_norm(x, w.shape, w, b))
                number += 1
            number += dropout[place] > 0
        assert not left, f"no layer for {list(left)}"
        return lambda x: x + _one_after_another(steps, x)

    return {k: tuple(map(network, pair)) for k, pair in content.items() if type(k) is int}


def as_comfyui(file: Path) -> Networks:
    """Weights are taken in the order in which they stand in the file; dropout, if told of, stays on."""
    content = torch.load(file, weights_only=True)
    kinds = ("Identity", "ReLU", "LeakyReLU", "ELU", "Hardswish", "Tanh", "Sigmoid", "Softsign", "Mish")
    active = getattr(
        torch.nn, dict(zip(COMFY, kinds, strict=True))[content.get("activation_func", "linear")]
    )()
    assert not content.get("use_dropout", False), "would drop while drawing"

    def network(state: dict[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        steps: list[Any] = []
        names = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
        weights = [(state[f"{name}.weight"].float(), state[f"{name}.bias"].float()) for name in names]
        while weights:
            weight, bias = weights.pop(0)
            steps.append(lambda x, w=weight, b=bias: x @ w.T + b)
            if weights or content.get("activate_output", False):
                steps.append(active)
            if content.get("is_layer_norm", False):
                weight, bias = weights.pop(0)
                steps.append(lambda x, w=weight, b=bias: torch.layer_norm(x, w.shape, w, b))
        return lambda x: x + _one_after_another(steps, x)

    def is_width(key: Any) -> bool:
        try:
            return bool(int(key))
        except ValueError:
            return False

    return {int(k): tuple(map(network, pair)) for k, pair in content.items() if is_width(k)}


def _one_after_another(steps: list[Any], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        for step in steps:
            x = step(x)
    return x


def read_by(reader: Callable[[Path], Networks], base: Path, file: Path) -> torch.Tensor:
    """The output of a base whose contexts go through what a reader found, by their width."""
    parts, networks = load(base), reader(file)
    for path, layer in parts.denoiser.named_modules():
        if path.endswith((".to_k", ".to_v")) and layer.in_features in networks:
            network = networks[layer.in_features][int(path.endswith("v"))]
            layer.forward = lambda x, old=layer.forward, network=network: old(network(x))
    return output(parts)


@SECTIONS
def test_a1111_reads_what_was_trained(base: Path, tmp_path: Path, section: HypernetworkSection) -> None:
    parts = attached(base, section)
    file = exported(parts, section, tmp_path)
    torch.testing.assert_close(read_by(as_a1111, base, file), output(parts), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(load(base)), output(parts), atol=1e-3)


@pytest.mark.parametrize("activation", COMFY)
def test_comfyui_reads_what_was_trained(base: Path, tmp_path: Path, activation: Any) -> None:
    section = HypernetworkSection(activation=activation, dropout=0.3)
    parts = attached(base, section)
    file = exported(parts, section, tmp_path)
    torch.testing.assert_close(read_by(as_comfyui, base, file), output(parts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_comfyui_reads_layer_norm_where_the_setting_says_so(
    base: Path, tmp_path: Path, activation: Any
) -> None:
    section = HypernetworkSection(
        activation=activation, layer_norm=True, activate_output=activation == "relu"
    )
    parts = attached(base, section)
    file = exported(parts, section, tmp_path)
    torch.testing.assert_close(read_by(as_comfyui, base, file), output(parts), rtol=1e-5, atol=1e-5)


@SECTIONS
def test_our_own_reading_is_exact(base: Path, tmp_path: Path, section: HypernetworkSection) -> None:
    parts = attached(base, section)
    file = exported(parts, section, tmp_path)
    assert METHOD.reads(file) and recognise(file).kind == "hypernetwork"
    assert torch.equal(drawn_with(base, file), output(parts))


def test_half_precision_agrees_within_a_thousandth(base: Path, tmp_path: Path) -> None:
    section = KINDS["everything"]
    parts = attached(base, section)
    live = output(parts)
    for precision, dtype, error in (("fp16", torch.float16, 1e-3), ("bf16", torch.bfloat16, 2e-2)):
        file = exported(parts, section, tmp_path, precision)
        assert {tensor.dtype for tensor in stored_in(file)} == {dtype}
        assert (drawn_with(base, file) - live).abs().max() < error * live.abs().max()


def test_a_value_too_large_for_the_file_is_named_before_it_is_written(base: Path, tmp_path: Path) -> None:
    parts = attached(base, KINDS["plain"], spread=1e6)
    with pytest.raises(UserError, match="too large for fp16"):
        exported(parts, KINDS["plain"], tmp_path, "fp16")
    assert not list(tmp_path.iterdir())


# -- the file ---------------------------------------------------------------------------------------

SAFE = {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch HalfStorage",
    "torch BFloat16Storage",
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_file_is_in_the_old_stream_of_classes_that_a1111_lets_in(
    base: Path, tmp_path: Path, precision: str
) -> None:
    file = exported(attached(base, KINDS["plain"]), KINDS["plain"], tmp_path, precision)
    assert not zipfile.is_zipfile(file)
    wanted = []
    with file.open("rb") as stream:
        for _ in range(5):  # magic number, protocol, system, content, names of the storages
            wanted += [value for code, value, _ in pickletools.genops(stream) if code.name == "GLOBAL"]
    assert wanted and set(wanted) <= SAFE


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({}, [0, 1]),
        ({"activation": "relu"}, [0, 2]),
        ({"activation": "relu", "dropout": 0.3}, [0, 3]),
        ({"activation": "relu", "layer_norm": True}, [0, 2, 3, 4]),
        ({"activation": "relu", "layer_norm": True, "dropout": 0.3}, [0, 2, 4, 5]),
        ({"layer_norm": True, "dropout": 0.3}, [0, 1, 3, 4]),
        ({"layer_structure": "1, 2, 2, 1", "dropout": 0.3}, [0, 2, 4]),
        ({"layer_structure": "1, 2, 2, 1", "dropout": 0.3, "last_layer_dropout": False}, [0, 2, 3]),
        ({"layer_structure": "1, 2, 2, 1", "activation": "elu", "activate_output": True}, [0, 2, 4]),
        ({"layer_structure": "1, 1", "activation": "relu", "layer_norm": True}, [0, 1]),
        ({"activation": "prelu"}, [0, 1, 2]),
    ],
    ids=str,
)
def test_layers_are_numbered_as_they_stand(
    base: Path, tmp_path: Path, settings: dict[str, Any], numbers: list[int]
) -> None:
    section = HypernetworkSection(**settings)
    content = legacy_pt.read(exported(attached(base, section), section, tmp_path))
    for width in (16, 32):
        for state in content[width]:
            assert [name for name in state if name.endswith("weight")] == [
                f"linear.{number}.weight" for number in numbers
            ]


def test_the_file_says_how_it_is_built(base: Path, tmp_path: Path) -> None:
    section = KINDS["inner dropout"].model_copy(update={"weight_init": "KaimingNormal"})
    about = {"ss_steps": "70", "ss_sd_model_name": "best", "sdtrainer_config": "schema = 1\n", "ss_note": "x"}
    (file,) = METHOD.export(
        attached(base, section), section, replace(order(tmp_path), metadata=about, name="zib")
    )
    assert {key: value for key, value in legacy_pt.read(file).items() if isinstance(key, str)} == {
        "name": "zib", "step": 70, "sd_checkpoint": None, "sd_checkpoint_name": "best", "optional_info": None,
        "layer_structure": [1, 2, 0.5, 1], "activation_func": "swish", "activate_output": False,
        "is_layer_norm": False, "weight_initialization": "KaimingNormal", "use_dropout": False,
        "dropout_structure": [0, 0.3, 0, 0], "last_layer_dropout": False, "sdtrainer_config": "schema = 1\n",
    }  # fmt: skip


@pytest.mark.parametrize("section", [KINDS["plain"], KINDS["everything"]], ids=["plain", "everything"])
def test_the_predicted_size_is_the_size_of_the_file(
    base: Path, tmp_path: Path, section: HypernetworkSection
) -> None:
    parts = attached(base, section)
    for precision in ("fp16", "fp32"):
        predicted = METHOD.exported_bytes(parts, section, precision)  # type: ignore[arg-type]
        assert predicted == pytest.approx(
            exported(parts, section, tmp_path, precision).stat().st_size, rel=0.05
        )


def test_on_stable_diffusion_1_5_widths_and_size_are_those_of_a1111(trainer: Trainer, tmp_path: Path) -> None:
    """A1111's hypernetworks of the default kind have always been files of 83.8 MB."""
    published = str(sd15.write(tmp_path / "sd15"))
    facts = families.recognise(BaseSection(path=published))
    denoiser = families.family_of(facts).skeleton(facts)["denoiser"]
    assert layers.text_and_image_widths(denoiser, facts.text_width) == ([768], [320, 640, 1280])
    config = trainer.config(method__kind="hypernetwork", base__path=published)
    ledger = estimate(planner.draft(config, trainer.workspace, CPU_ONLY).plan)
    assert ledger.trained == sum(8 * width**2 + 6 * width for width in (320, 640, 768, 1280))
    assert round(ledger.exported_bytes / 2**20, 1) in (83.7, 83.8)


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


# -- files of others, and strength ------------------------------------------------------------------


def test_strength_scales_what_is_added(base: Path, tmp_path: Path) -> None:
    file = exported(attached(base, KINDS["relu"]), KINDS["relu"], tmp_path)
    assert torch.equal(drawn_with(base, file, 0.0), output(load(base)))
    context, made = torch.randn(1, 3, 32), {}
    for strength in (0.5, 1.0, -1.0):
        parts = load(base)
        METHOD.put_on(parts, file, strength)
        network = parts.denoiser.get_submodule(f"{layers.NAME}_0").by_width()[32][0]
        made[strength] = network(context) - context
    torch.testing.assert_close(made[0.5], made[1.0] / 2)
    torch.testing.assert_close(made[-1.0], -made[1.0])


def test_two_files_work_one_after_the_other(base: Path, tmp_path: Path) -> None:
    parts = load(base)
    for name, section in (("one", KINDS["plain"]), ("two", KINDS["relu"])):
        file = exported(attached(base, section), section, tmp_path / name)
        METHOD.put_on(parts, file, 1.0)
    pairs = [parts.denoiser.get_submodule(f"{layers.NAME}_{n}").by_width()[32] for n in range(2)]
    layer = next(a for a in layers.attentions(parts.denoiser) if a.to_v.in_features == 32).to_v
    context = torch.randn(1, 3, 32)
    twice = pairs[1][1](pairs[0][1](context))
    torch.testing.assert_close(layer(context), torch.nn.functional.linear(twice, layer.weight, layer.bias))


def test_the_first_hypernetworks_of_all_are_read(base: Path, tmp_path: Path) -> None:
    """They had no words and called their layers linear1 and linear2; A1111 wrote zip files then."""
    parts = attached(base, KINDS["plain"])
    content = legacy_pt.read(exported(parts, KINDS["plain"], tmp_path))
    old = {
        width: tuple({name.replace("linear.1", "linear2").replace("linear.0", "linear1"): t
                      for name, t in state.items()} for state in content[width])
        for width in (16, 32)
    }  # fmt: skip
    torch.save(old, tmp_path / "old.pt")
    assert METHOD.reads(tmp_path / "old.pt")
    assert torch.equal(drawn_with(base, tmp_path / "old.pt"), output(parts))


def test_what_an_older_file_leaves_unsaid_is_taken_as_a1111_takes_it(base: Path, tmp_path: Path) -> None:
    section = HypernetworkSection(layer_structure="1, 2, 2, 1", activation="relu", dropout=0.3)
    content = legacy_pt.read(exported(attached(base, section), section, tmp_path))
    for word in ("dropout_structure", "activate_output", "is_layer_norm"):
        del content[word]
    legacy_pt.write(tmp_path / "old.pt", content | {"use_dropout": True, "last_layer_dropout": True})
    found = layout.read(tmp_path / "old.pt").architecture
    assert found == replace(architecture_of(section), activate_output=True)


def test_a_network_for_another_text_width_beside_ours_is_passed_over(base: Path, tmp_path: Path) -> None:
    """A1111's own list offers the widths of Stable Diffusion 1 and 2 together."""
    parts = attached(base, KINDS["plain"])
    content = legacy_pt.read(exported(parts, KINDS["plain"], tmp_path))
    other = {f"linear.{n}.{kind}": torch.zeros(*([48] * (2 if kind == "weight" else 1)))
             for n in (0, 1) for kind in ("weight", "bias")}  # fmt: skip
    legacy_pt.write(tmp_path / "both.pt", content | {"layer_structure": [1, 1, 1], 48: (other, other)})
    with pytest.raises(UserError, match="other networks than it says"):
        drawn_with(base, tmp_path / "both.pt")
    wide = {"linear.0.weight": torch.zeros(96, 48), "linear.0.bias": torch.zeros(96),
            "linear.1.weight": torch.zeros(48, 96), "linear.1.bias": torch.zeros(48)}  # fmt: skip
    legacy_pt.write(tmp_path / "both.pt", content | {48: (wide, wide)})
    assert torch.equal(drawn_with(base, tmp_path / "both.pt"), output(parts))


def test_a_file_for_another_kind_of_base_is_refused(base: Path, tmp_path: Path) -> None:
    content = legacy_pt.read(exported(attached(base, KINDS["plain"]), KINDS["plain"], tmp_path))
    wide = {"linear.0.weight": torch.zeros(96, 48), "linear.0.bias": torch.zeros(96),
            "linear.1.weight": torch.zeros(48, 96), "linear.1.bias": torch.zeros(48)}  # fmt: skip
    legacy_pt.write(tmp_path / "other.pt", {k: v for k, v in content.items() if k != 32} | {48: (wide, wide)})
    with pytest.raises(UserError, match=r"other\.pt is for contexts 16, 48 wide; those of .* 32, 16, 32"):
        drawn_with(base, tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"activation_func": "softmax"}, "activation softmax is not known"),
        ({"layer_structure": [2, 1]}, "layer structure"),
        ({"layer_structure": [1, 10**9, 1]}, "other networks than it says"),
        ({"layer_structure": "wide"}, "could not convert"),
        ({"dropout_structure": [0, 1.5, 0]}, "dropout"),
        ({"is_layer_norm": True}, "other networks than it says"),
        ({32: ({"linear.0.weight": 3}, {"a": 1})}, "other networks than it says"),
    ],
    ids=str,
)
def test_a_file_that_says_other_than_it_holds_is_refused(
    base: Path, tmp_path: Path, changes: Any, sentence: str
) -> None:
    content = legacy_pt.read(exported(attached(base, KINDS["plain"]), KINDS["plain"], tmp_path))
    legacy_pt.write(tmp_path / "odd.pt", content | changes)
    with pytest.raises(UserError, match=rf"odd\.pt .*{sentence}"):
        drawn_with(base, tmp_path / "odd.pt")


def test_other_files_are_not_taken_for_hypernetworks(tmp_path: Path) -> None:
    legacy_pt.write(tmp_path / "embedding.pt", {"string_to_param": {"*": torch.zeros(2, 32)}, "step": 3})
    (tmp_path / "lora.safetensors").write_bytes(b"")
    for name in ("embedding.pt", "lora.safetensors", "missing.pt"):
        assert not METHOD.reads(tmp_path / name)
    with pytest.raises(UserError, match=r"embedding\.pt is no hypernetwork"):
        layout.read(tmp_path / "embedding.pt")


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
