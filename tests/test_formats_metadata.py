"""What a file says of itself: all text, complete for its readers, and silent about the user's disk."""

import dataclasses
import json
import subprocess
import sys
import tomllib

import pytest

from sdtrainer.formats import metadata
from sdtrainer.formats.metadata import Provenance
from sdtrainer.formats.readers import READERS, readers_of
from sdtrainer.section import UserError

CONFIG = """
# my photos from /home/anna/private
schema = 1

[base]
path = "/home/anna/models/best.safetensors"  # on C:\\\\disk

[data]
sources = [
    { folder = "photos/secret", repeats = 2 },
    { folder = 'C:\\Users\\anna\\pics', repeats = 1 },
]
trigger = "sks dog"
extra = ["~/anna", "and/or", "\\\\\\\\server\\\\share", "a/b split"]

[optim]
lr = 1e-4
"""


def provenance(**changes) -> Provenance:
    values = dict(
        name="dog", method="lora", base_title="Stable Diffusion 1", prediction_type="epsilon",
        base_name="/home/anna/models/best.safetensors", resolution=(512, 512), steps=90, total_steps=100,
        epochs=9,
        total_epochs=10, batch_size=2, accumulation=4, denoiser_lr=1e-4, text_encoder_lr=0.0,
        optimizer="adamw8bit",
        lr_schedule="cosine", warmup_steps=5, seed=42, precision="bf16", num_images=12, started=1.7e9,
        finished=1.7e9 + 600, version="0.1.0", rank=16, alpha=8.0, network_args={"dropout": 0.1},
        trigger="sks dog",
        tag_frequency={"dog": 12, "grass": 3}, config_text=CONFIG,
        path_settings=("base.path", "data.sources.folder"),
    )  # fmt: skip
    return Provenance(**(values | changes))


def test_every_value_is_text_and_the_minimum_set_is_there():
    built = metadata.build(provenance())
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in built.items())
    minimum = {"v2", "base_model_version", "network_module", "network_dim", "network_alpha", "network_args"}
    assert {f"ss_{key}" for key in minimum} <= built.keys()
    must = {"sai_model_spec", "architecture", "implementation", "title", "resolution"}
    assert {f"modelspec.{key}" for key in must} <= built.keys()
    assert built["ss_network_dim"] == "16" and built["ss_network_alpha"] == "8.0"
    assert json.loads(built["ss_network_args"]) == {"dropout": "0.1"}
    assert json.loads(built["ss_tag_frequency"]) == {"images": {"dog": 12, "grass": 3}}
    assert built["ss_total_batch_size"] == "8" and built["ss_text_encoder_lr"] == "None"
    assert built["modelspec.date"] == "2023-11-14T22:23:20+00:00"
    assert built["modelspec.trigger_phrase"] == "sks dog" and json.loads(built["trained_words"]) == [
        "sks dog"
    ]


@pytest.mark.parametrize(
    ("title", "prediction", "version", "architecture", "said"),
    [
        ("1", "epsilon", "sd_v1", "stable-diffusion-v1", "epsilon"),
        ("2", "epsilon", "sd_v2", "stable-diffusion-v2-512", "epsilon"),
        ("2", "v_prediction", "sd_v2_v", "stable-diffusion-v2-768-v", "v"),
        ("3 Medium", "flow", "sd3m", "stable-diffusion-v3-medium", None),
        ("3.5 Medium", "flow", "3-5-medium", "stable-diffusion-v3.5-medium", None),
        ("3.5 Large", "flow", "3-5-large", "stable-diffusion-v3.5-large", None),
    ],
)
def test_the_base_model_is_named_as_readers_expect(title, prediction, version, architecture, said):
    built = metadata.build(provenance(base_title=f"Stable Diffusion {title}", prediction_type=prediction))
    assert (built["ss_v2"], built["ss_base_model_version"]) == (str(title == "2"), version)
    assert built["modelspec.architecture"] == f"{architecture}/lora"
    assert built.get("modelspec.prediction_type") == said


def test_nothing_of_the_users_disk_gets_out():
    built = metadata.build(provenance())
    text = json.dumps(built)
    for secret in ("anna", "secret", "photos", "Users", "server", "share", "C:", "private", "~"):
        assert secret not in text, secret
    assert built["ss_sd_model_name"] == "best.safetensors"
    windows = metadata.build(provenance(base_name="C:\\models\\best.safetensors"))
    assert windows["ss_sd_model_name"] == "best.safetensors"


def test_the_rest_of_the_configuration_is_kept():
    config = tomllib.loads(metadata.build(provenance())["sdtrainer_config"])
    assert config["schema"] == 1 and config["optim"]["lr"] == 1e-4 and config["data"]["trigger"] == "sks dog"
    assert config["data"]["sources"] == [{"folder": "", "repeats": 2}, {"folder": "", "repeats": 1}]
    assert config["data"]["extra"] == ["", "and/or", "", "a/b split"]


def test_prompts_with_slashes_and_weights_are_no_paths():
    config = 'prompts = ["a dog, 1/2 body", "(dog:1.2) and/or cat", "50/50 split /", "w/ hat"]'
    assert tomllib.loads(metadata.without_paths(config)) == tomllib.loads(config)


def test_a_configuration_that_is_no_toml_is_said():
    with pytest.raises(UserError, match="not TOML"):
        metadata.without_paths("[data")


def test_a_whole_model_is_no_network():
    built = metadata.build(provenance(method="full"))
    assert built["modelspec.architecture"] == "stable-diffusion-v1"
    assert not [key for key in built if "network" in key]


def test_nothing_is_lost_between_the_values_and_the_text():
    """Changing any field changes the text."""
    before = metadata.build(provenance())
    other = {
        "method": "lora", "base_title": "Stable Diffusion XL", "prediction_type": "v_prediction",
        "precision": "fp32",
        "config_text": "a = 1",
        "path_settings": ("data.trigger",), "resolution": (768, 512), "network_args": {"x": 1},
        "tag_frequency": {"x": 1},
    }  # fmt: skip
    fields = [f.name for f in dataclasses.fields(Provenance) if f.name != "method"]
    assert len(fields) > 30
    for name in fields:
        value = getattr(provenance(), name)
        if name in other:
            new = other[name]
        else:
            new = not value if isinstance(value, bool) else value + type(value)("1")
        assert metadata.build(provenance(**{name: new})) != before, name


def test_the_table_of_readers_is_whole():
    programs = {r.program for r in READERS}
    for layout in ("webui", "diffusers"):
        for method in ("lora", "full"):
            assert {r.program for r in readers_of(method, "sd", layout)} == programs
    assert all(r.how.endswith(".") and (r.reads == "no" or r.tried) for r in READERS)


def test_importing_the_formats_does_not_import_torch():
    code = (
        "import sys\n"
        "from sdtrainer.formats import diffusers_names, kohya, metadata, readers, safetensors_file\n"
        "assert not {'torch', 'diffusers', 'safetensors.torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
