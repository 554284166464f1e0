"""Real photographs, as a hobbyist has them: wide, tall, rotated by EXIF, grey, CMYK, with alpha, and a broken
one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Trainer
from PIL import Image

from sdtrainer.events import Finished, Said
from sdtrainer.planner import load

data = pytest.importorskip("skimage.data", reason="scikit-image brings the photographs")
ROTATED = 6  # EXIF orientation: turn 90 degrees clockwise to view


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    cat = Image.fromarray(data.chelsea())
    coffee = Image.fromarray(data.coffee())
    astronaut = Image.fromarray(data.astronaut())
    cat.save(folder / "a wide cat.jpg", quality=90)
    coffee.crop((200, 0, 400, 400)).save(folder / "a tall cup.png")
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    coffee.save(folder / "a turned cup.jpg", exif=exif)
    Image.fromarray(data.camera()).save(folder / "a grey man.png")
    astronaut.convert("CMYK").save(folder / "an astronaut.jpg")
    alpha = astronaut.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    alpha.save(folder / "a ghost.png")
    whole = (folder / "a wide cat.jpg").read_bytes()
    (folder / "a broken cat.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def test_photographs_of_every_kind_train_in_buckets_and_are_left_alone(
    trainer: Trainer, photos: Path
) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()}
    assert len(before) == 7
    folder = trainer.new(
        data__folder=str(photos), data__validation_folder="", train__resolution=128, train__steps="8"
    )
    happened = trainer.run(folder)
    assert isinstance(happened[-1], Finished)
    assert any("a broken cat.jpg" in event.text for event in happened if isinstance(event, Said))
    assert not any("a broken cat.jpg" in sample.path for sample in load(folder).census.samples)
    draft = load(folder)
    assert draft is not None
    shapes = {s.path: (s.width, s.height) for s in draft.census.samples}
    assert shapes["a turned cup.jpg"] == (400, 600)
    assert draft.census.samples[0].caption.startswith("a ")
    assert len(draft.plan.buckets) >= 3
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.iterdir()}
