"""Writing and reading .safetensors files: whole or not at all, in the right precision and hashes."""

import hashlib
import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from sdtrainer import files
from sdtrainer.formats import safetensors_file
from sdtrainer.section import UserError

METADATA = {
    "ss_network_dim": "4",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.title": "Möwe",
    "format": "pt",
}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "lora_unet_a.lora_down.weight": torch.randn(4, 300, generator=generator),
        "lora_unet_a.alpha": torch.tensor(2.3),
        "count": torch.arange(3),
    }


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_written_tensors_come_back_in_their_precision(tmp_path, precision, dtype):
    path = tmp_path / "new folder" / "a.safetensors"
    safetensors_file.write(path, tensors(), METADATA, precision)
    header, back = safetensors_file.read_header(path), load_file(path)
    size = {"F32": 4}.get(dtype, 2)
    assert {name: info[:3] for name, info in header.tensors.items()} == {
        "lora_unet_a.lora_down.weight": (dtype, (4, 300), 1200 * size),
        "lora_unet_a.alpha": ("F32", (), 4),
        "count": ("I64", (3,), 24),
    }
    for name, tensor in tensors().items():
        assert torch.equal(back[name], tensor.to(back[name].dtype))
    assert METADATA.items() <= header.metadata.items()
    assert not list(path.parent.glob(".*")), "temporary files are left"


def test_views_and_shared_tensors_are_stored_as_they_look(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"t": base.T, "row": base[1], "same": base, "again": base, "parameter": torch.nn.Parameter(base)}
    safetensors_file.write(tmp_path / "a.safetensors", state, {}, "fp32")
    back = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_hashes_are_those_of_the_file_with_only_its_ss_entries(tmp_path):
    """As FORMATS has it of sd-scripts: over the tensors, and over 64 KiB at 1 MiB."""
    state = {
        f"layer_{i}.weight": torch.randn(200, 500, generator=torch.Generator().manual_seed(i))
        for i in range(4)
    }
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, state, METADATA, "fp32")
    metadata = safetensors_file.read_header(path).metadata
    bare = save(state, {k: v for k, v in METADATA.items() if k.startswith("ss_")})
    start = 8 + struct.unpack("<Q", bare[:8])[0]
    whole = hashlib.sha256(bare[start:]).hexdigest()
    assert metadata["sshs_model_hash"] == whole
    assert metadata["modelspec.hash_sha256"] == f"0x{whole}"
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(bare[0x100000:0x110000]).hexdigest()[:8]
    content = path.read_bytes()
    assert hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest() == whole
    assert struct.unpack("<Q", content[:8])[0] % 8 == 0


def test_the_hash_of_the_tensors_does_not_depend_on_the_text(tmp_path):
    for name, metadata in (("a", {}), ("b", METADATA)):
        safetensors_file.write(tmp_path / name, tensors(), metadata, "fp16")
    hashes = {safetensors_file.read_header(tmp_path / name).metadata["sshs_model_hash"] for name in "ab"}
    assert len(hashes) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_numbers_are_refused_by_module_and_the_old_file_stays(tmp_path, bad):
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, tensors(), {}, "fp32")
    before = path.read_bytes()
    state = tensors() | {"lora_unet_mid_block.lora_up.weight": torch.tensor([[1.0, bad]])}
    with pytest.raises(UserError, match="lora_unet_mid_block holds values that are not numbers"):
        safetensors_file.write(path, state, {}, "fp32")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_values_too_large_for_fp16_are_refused_with_another_precision_as_remedy(tmp_path):
    state = {"lora_unet_a.lora_up.weight": torch.tensor([[1e6]])}
    with pytest.raises(UserError, match=r"too large for fp16.*bf16") as caught:
        safetensors_file.write(tmp_path / "a", state, {}, "fp16")
    assert caught.value.path == "export.precision"
    safetensors_file.write(tmp_path / "a", state, {}, "bf16")


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, tensors(), {}, "fp32")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(UserError, match="No space left"):
        safetensors_file.write(path, {"b": torch.ones(5)}, {}, "fp32")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_header_of_the_librarys_own_files_is_read(tmp_path):
    save_file({"x": torch.zeros(2, 3)}, tmp_path / "plain.safetensors")
    header = safetensors_file.read_header(tmp_path / "plain.safetensors")
    assert header.tensors["x"][:3] == ("F32", (2, 3), 24) and header.metadata == {}
    assert header.tensors.keys() == {"x"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a safetensors file"),
        (b"PK\x03\x04" + bytes(200), "not a safetensors file"),
        (b"\x80\x02}q\x00." * 20, "not a safetensors file"),
        (struct.pack("<Q", 4) + b"[1]\n", "not a safetensors file"),
        (struct.pack("<Q", 12) + b'{"a": {}}   ', "header of bad.safetensors is damaged"),
    ],
    ids=["empty", "zip", "pickle", "list", "no offsets"],
)
def test_other_files_are_refused_by_name(tmp_path, content, words):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        safetensors_file.read_header(path)
    assert "bad.safetensors" in str(caught.value)


def test_a_file_cut_short_is_told_from_a_damaged_and_a_missing_one(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, tensors(), {}, "fp32")
    content = path.read_bytes()
    for size, words in ((-100, "cut short"), (20, "not a safetensors file")):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=words):
            safetensors_file.read_header(path)
    path.write_bytes(content + b"more")
    with pytest.raises(UserError, match="damaged"):
        safetensors_file.read_header(path)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        safetensors_file.read_header(path)


def test_metadata_survives_in_any_language(tmp_path):
    safetensors_file.write(
        tmp_path / "a", tensors(), {"ss_title": '猫 "quoted"\n', "ss_json": json.dumps({})}, "fp32"
    )
    assert safetensors_file.read_header(tmp_path / "a").metadata["ss_title"] == '猫 "quoted"\n'
