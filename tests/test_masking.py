"""Masks made by a model: a real CLIPSeg of tiny size with random weights."""

import numpy as np
import pytest
import tiny
from PIL import Image

from sdtrainer.chores import CHORES
from sdtrainer.data.overlay import overlay_for
from sdtrainer.data.scan import scan
from sdtrainer.data.section import DataSection
from sdtrainer.masking import grown
from sdtrainer.section import UserError


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory):
    import torch
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    folder = tmp_path_factory.mktemp("models") / "clipseg"
    tokenizer = tiny.make_tokenizer(folder)
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
              "image_size": 64, "patch_size": 16}  # fmt: skip
    torch.manual_seed(0)
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=16, extract_layers=[1, 2, 3], reduce_dim=8,
        decoder_num_attention_heads=2, decoder_intermediate_size=16,
    )  # fmt: skip
    model = CLIPSegForImageSegmentation(config)
    for parameter in model.parameters():  # small, so that every place is as good as undecided
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def done(workspace, **values):
    chore = CHORES["mask"]
    doing = chore.do(chore.check(values), workspace)
    try:
        while True:
            next(doing)
    except StopIteration as end:
        return end.value


def test_masks_are_made_for_pictures_without_one_and_can_be_undone(workspace, images, clipseg, tmp_path):
    asked = {"folder": str(images), "words": ["disc", "sky"], "model": str(clipseg), "certainty": 0.1}
    overlay = overlay_for(workspace.root, images)
    overlay.masks.mkdir(parents=True)
    Image.new("L", (64, 64), 255).save(overlay.masks / "painted.png")
    overlay.lay("masks", {"00.png": "painted.png"})
    before = {file: file.read_bytes() for file in images.iterdir()}
    answer = done(workspace, **asked)
    assert (answer["made"], answer["had"]) == (4, 1)
    samples = scan(images, DataSection(), overlay_for(workspace.root, images)).samples
    assert all(sample.mask and Image.open(sample.mask).size == (64, 64) for sample in samples)
    assert samples[0].mask.name == "painted.png"
    assert done(workspace, **asked)["made"] == 0
    assert "disc" in overlay.undo().what
    assert overlay.entries("masks") == {"00.png": "painted.png"}
    assert {file: file.read_bytes() for file in images.iterdir()} == before


def test_what_is_not_found_gets_no_mask(workspace, images, clipseg):
    answer = done(workspace, folder=str(images), words=["disc"], model=str(clipseg), certainty=0.999)
    assert answer["made"] == 0 and len(answer["empty"]) == 5
    assert not overlay_for(workspace.root, images).entries("masks")


def test_a_margin_reaches_equally_far_on_all_sides():
    dot = np.zeros((64, 64), bool)
    dot[32, 20] = True
    assert np.argwhere(grown(dot, 0.05)).min(0).tolist() == [29, 17]
    assert grown(dot, 0.05).sum() == 49 and grown(dot, 0).sum() == 1


@pytest.mark.parametrize(
    ("wrong", "setting", "said"),
    [
        ({"words": [" "]}, "words", "no word"),
        ({"words": ["a"], "model": "."}, "model", "no CLIPSeg"),
        ({"words": ["a"], "model": "/nowhere"}, "model", "no folder /nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(workspace, images, wrong, setting, said):
    with pytest.raises(UserError, match=said) as raised:
        done(workspace, folder=str(images), **wrong)
    assert raised.value.path == setting
