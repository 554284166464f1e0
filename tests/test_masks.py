"""Masks: found as people keep them, cut as their picture is, and honoured by the loss."""

import shutil

import pytest
import torch
from conftest import Killed, Trainer
from PIL import Image
from test_train import assert_same, exported, losses

from sdtrainer import diffusion
from sdtrainer.data.items import Draw, plan_items
from sdtrainer.data.loading import Loader, check_masks
from sdtrainer.data.masks import Masks
from sdtrainer.data.overlay import overlay_for
from sdtrainer.data.prior import PriorSection, class_items
from sdtrainer.data.scan import scan
from sdtrainer.data.section import DataSection
from sdtrainer.events import Finished, Said, Saved, Validated
from sdtrainer.workspace import RunFolder


def half_white(size, name):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    name.parent.mkdir(parents=True, exist_ok=True)
    mask.save(name)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.png", "b.jpg", "c.png"):
        Image.new("RGB", (96, 64), "red").save(folder / name)
    return folder


def masks_of(folder, overlay=None, **section):
    return {s.path: s.mask for s in scan(folder, DataSection(**section), overlay).samples}


def only_item(folder, **section):
    settings = DataSection(**section)
    return plan_items(scan(folder, settings).samples[:1], settings, [64])[0]


def test_masks_are_found_as_people_keep_them_and_are_no_pictures(tmp_path, folder):
    half_white((96, 64), folder / "a-masklabel.png")
    half_white((192, 128), folder / "masks" / "b.png")
    half_white((96, 64), tmp_path / "elsewhere" / "c.png")
    found = masks_of(folder)
    assert found == {"a.png": folder / "a-masklabel.png", "b.jpg": folder / "masks" / "b.png", "c.png": None}
    assert masks_of(folder, mask_folder=str(tmp_path / "elsewhere")) == found | {
        "c.png": tmp_path / "elsewhere" / "c.png"
    }
    assert masks_of(folder, masks="alpha")["c.png"] == folder / "c.png"
    assert masks_of(folder, masks="off") == dict.fromkeys(found)
    assert scan(folder, DataSection()).layout.endswith("2 masks")


def test_a_folder_of_carnival_masks_holds_pictures(folder):
    half_white((96, 64), folder / "masks" / "venice.png")
    half_white((96, 64), folder / "masks" / "a.png")
    assert masks_of(folder) == dict.fromkeys(["a.png", "b.jpg", "c.png", "masks/a.png", "masks/venice.png"])


def test_a_mask_made_in_the_app_comes_first_and_one_of_another_shape_is_refused(tmp_path, folder):
    overlay = overlay_for(tmp_path, folder)
    half_white((96, 64), overlay.masks / "made.png")
    half_white((64, 64), folder / "a-masklabel.png")
    census = scan(folder, DataSection(), overlay)
    (problem,) = [p for p in census.problems if p.kind == "mask"]
    assert problem.file == "a.png" and "64 x 64" in problem.sentence
    overlay.lay("masks", {"a.png": "made.png"})
    assert masks_of(folder, overlay)["a.png"] == overlay.masks / "made.png"
    overlay.lay("masks", {"a.png": "gone.png"})
    assert masks_of(folder, overlay)["a.png"] is None


def test_weights_follow_crop_and_mirror(folder):
    half_white((96, 64), folder / "a-masklabel.png")
    item = only_item(folder, unmasked_weight=0.25, flip=True, bucket_min=64, bucket_max=64)
    masks = Masks(pixels_per_latent=8)
    straight, mirrored = (masks.weights(item, Draw(0, flip)) for flip in (False, True))
    assert straight.shape == (1, 8, 8)
    assert torch.equal(mirrored, straight.flip(-1))
    assert straight[:, :, :3].eq(1).all() and straight[:, :, 5:].eq(0.25).all()
    moved = Masks(8).weights(item, Draw(0, position=(1.0, 0.5)))
    assert moved.sum() < straight.sum(), "further right less of the picture is masked"
    even = Masks(8).weights(only_item(folder, unmasked_weight=0.25, even_masks=True), Draw(0))
    assert even.mean().item() == pytest.approx(1) and even[0, 0, 0] > 1


def test_alpha_is_a_mask_where_it_is_asked_for(folder):
    see_through = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    see_through.paste((255, 0, 0, 255), (0, 0, 32, 64))
    see_through.save(folder / "a.png")
    weights = Masks(8).weights(only_item(folder, masks="alpha", unmasked_weight=0), Draw(0))
    assert weights[0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_pictures_without_a_mask_weigh_one_and_class_images_have_none(folder):
    half_white((96, 64), folder / "a-masklabel.png")
    settings = DataSection()
    census = scan(folder, settings)
    items = plan_items(census.samples, settings, [64])
    loader = Loader(items, tokenize=lambda captions: {}, masks=Masks(8))
    mask = loader.batch([Draw(0), Draw(1)]).mask
    assert mask.shape[:2] == (2, 1) and mask[0].min() < 1 and mask[1].eq(1).all()
    assert loader.batch([Draw(1)]).mask is None
    beside = class_items(census, PriorSection(class_prompt="a dog"), settings, [64])
    assert census.samples[0].mask and all(item.mask is None for item in beside)


def test_a_broken_mask_leaves_its_picture_out(folder):
    half_white((96, 64), folder / "a-masklabel.png")
    item = only_item(folder)
    whole = (folder / "a-masklabel.png").read_bytes()
    (folder / "a-masklabel.png").write_bytes(whole[: len(whole) // 2])
    last = list(check_masks([item], Masks(8)))[-1]
    assert last.broken == {item.sample.file} and "a-masklabel.png" in last.problems[0].sentence


def test_no_gradient_leaves_the_mask_and_a_full_mask_changes_nothing():
    section = diffusion.NoiseSection(loss="huber", huber_delta=0.1)
    prediction = torch.randn(2, 4, 8, 8, requires_grad=True)
    target, mask = torch.randn(2, 4, 8, 8), torch.zeros(2, 1, 8, 8)
    mask[:, :, :, :3] = 1
    diffusion.error(prediction, target, section, mask).sum().backward()
    assert prediction.grad[..., 3:].eq(0).all() and prediction.grad[..., :3].ne(0).all()
    full = diffusion.error(prediction, target, section, torch.ones_like(mask))
    assert torch.equal(full, diffusion.error(prediction, target, section))


@pytest.fixture
def masked(trainer: Trainer, images, tmp_path):
    """A trainer whose pictures have masks, without validation and samples."""
    folder = shutil.copytree(images, tmp_path / "masked")
    for picture in sorted(folder.glob("*.png"))[:4]:
        half_white((64, 64), folder / "masks" / picture.name)
    quiet = {"folder": str(folder), "validation_folder": ""}
    trainer.values = {**trainer.values, "data": {**trainer.values["data"], **quiet}}
    trainer.values["sample"] = {"prompts": []}
    return trainer


def trained(trainer: Trainer, **changes) -> RunFolder:
    folder = trainer.new(train__steps="4", checkpoint__every="2", **changes)
    happened = trainer.run(folder)
    assert isinstance(happened[-1], Finished)
    return folder


def test_a_weight_of_one_is_the_unmasked_run_to_the_bit_and_less_is_not(masked: Trainer) -> None:
    without = exported(trained(masked, data__masks="off"))
    assert_same(exported(trained(masked, data__unmasked_weight=1.0)), without)
    learnt = exported(trained(masked, data__unmasked_weight=0.0))
    assert any(not torch.equal(learnt[key], without[key]) for key in without)


def test_a_masked_run_resumes_as_if_never_stopped(masked: Trainer) -> None:
    settings = {"data__flip": True, "data__cache_latents": "off", "data__crop": "random"}
    whole, cut = trained(masked, **settings), masked.new(train__steps="4", checkpoint__every="2", **settings)

    def kill(event, control):
        if isinstance(event, Saved) and event.step == 2:
            raise Killed

    assert isinstance(masked.run(cut, on_event=kill)[-1], Saved)
    masked.run(cut)
    assert losses(cut) == losses(whole)
    assert_same(exported(cut), exported(whole))


def test_the_validation_loss_goes_by_masks(masked: Trainer, tmp_path) -> None:
    found = {}
    for masks in ("auto", "off"):
        folder = masked.new(
            train__steps="1", data__validation_folder=masked.values["data"]["folder"], data__masks=masks
        )
        happened = masked.run(folder)
        found[masks] = next(e.loss for e in happened if isinstance(e, Validated))
        told = any(isinstance(e, Said) and "masks" in e.text for e in happened)
        assert told == (masks == "auto")
    assert found["auto"] != found["off"]
