"""The file of a hypernetwork: A1111 and ComfyUI read ours as we do, and we read theirs."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sd15
import torch
from conftest import Trainer
from test_hypernetwork import (
    COMFY,
    KINDS,
    SECTIONS,
    attached,
    drawn_with,
    exported,
    order,
    output,
    stored_in,
)
from test_methods import load

from sdtrainer import families, planner
from sdtrainer.families import BaseSection
from sdtrainer.formats import hypernetwork as layout
from sdtrainer.formats import legacy_pt
from sdtrainer.hardware import CPU_ONLY
from sdtrainer.memory import estimate
from sdtrainer.methods import hypernetwork_layers as layers
from sdtrainer.methods import recognise
from sdtrainer.methods.hypernetwork import METHOD, HypernetworkSection, architecture_of
from sdtrainer.section import UserError

# -- two independent readings of the file -----------------------------------------------------------

Networks = dict[int, tuple[Callable[[torch.Tensor], torch.Tensor], ...]]


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
