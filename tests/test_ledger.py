"""The whole ledger: the classic numbers of Stable Diffusion 1.5, and memory and disk beside the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sd15
from conftest import Trainer

from sdtrainer import planner, storage
from sdtrainer.hardware import CPU_ONLY, GIB, imagined
from sdtrainer.memory import CONTEXT_BYTES, Ledger, estimate
from sdtrainer.plan import Plan


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stable Diffusion 1.5, without weights."""
    return str(sd15.write(tmp_path_factory.mktemp("models") / "sd15"))


def summed(ledger: Ledger, what: str) -> int:
    return sum(row.bytes for row in ledger.rows if row.phase == "train" and row.what == what)


def test_all_of_sd15_in_fp32_with_adam_holds_fifteen_gib(trainer: Trainer, published: str) -> None:
    """Weights, gradients and Adam's two states of 982,581,444 trained numbers, with the VAE in the steps."""
    config = trainer.config(
        base__path=published, method={"kind": "full", "train_text_encoder": True},
        train__precision="fp32", optim__name="adamw", data__cache_latents="off",
    )  # fmt: skip
    ledger = estimate(planner.draft(config, trainer.workspace, imagined(48)).plan)
    assert ledger.trained == sd15.UNET + sd15.TEXT_ENCODER == 982_581_444
    assert ledger.loaded["vae"] == sd15.VAE
    found = {what: round(summed(ledger, what) / GIB, 2) for what in ("weights", "gradients", "optimizer")}
    assert found == {"weights": 3.97, "gradients": 3.66, "optimizer": 7.32}
    assert sum(found.values()) == pytest.approx(14.95)


def test_what_cuda_takes_is_counted_on_cuda_alone(trainer: Trainer) -> None:
    on_card = estimate(planner.draft(trainer.config(), trainer.workspace, imagined(8)).plan)
    on_processor = estimate(planner.draft(trainer.config(), trainer.workspace, CPU_ONLY).plan)
    assert summed(on_card, "overhead") > CONTEXT_BYTES
    assert not summed(on_processor, "overhead")


# -- memory and disk beside the card ----------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def needed(plan: Plan, where: str, words: str) -> int:
    return sum(n.bytes for n in storage.needs(plan, estimate(plan)) if n.where == where and words in n.what)


@pytest.fixture
def method() -> dict[str, Any]:
    return {"kind": "lora", "rank": 64, "targets": "with convolutions"}


def test_a_run_fills_the_disk_as_promised(trainer: Trainer, method: dict[str, Any]) -> None:
    """Files have headers of some kilobytes, which weigh at this tiny size."""
    folder = trainer.new(method=method, data__cache_text="on", sample__prompts=[])
    trainer.run(folder)
    loaded = planner.load(folder)
    assert loaded is not None
    plan = loaded.plan
    assert needed(plan, "disk", "checkpoints") == pytest.approx(size_of(folder.checkpoints), rel=0.1)
    assert needed(plan, "disk", "elsewhere") == pytest.approx(size_of(folder.output), rel=0.1)
    tensors = trainer.workspace.cache.rglob("*.safetensors")
    held = sum(file.stat().st_size for file in tensors)
    assert 0.9 * held < needed(plan, "disk", "latents") < 1.5 * held, "captions that repeat are kept once"


def test_main_memory_holds_the_model_and_a_good_state(
    trainer: Trainer, published: str, method: dict[str, Any]
) -> None:
    config = trainer.config(base__path=published, train__precision="bf16", optim__ema=True)
    plan = planner.draft(config, trainer.workspace, imagined(8)).plan
    assert needed(plan, "memory", "loaded") == 2 * (sd15.UNET + sd15.TEXT_ENCODER) + 4 * sd15.VAE
    ledger = estimate(plan)
    state = 4 * ledger.trained + summed(ledger, "optimizer") + summed(ledger, "average")
    assert needed(plan, "memory", "good state") == state > 0
    assert needed(plan, "disk", "checkpoints") == 2 * state


def test_mirrored_pictures_are_cached_beside(trainer: Trainer) -> None:
    def latents(**changes: Any) -> int:
        plan = planner.draft(trainer.config(**changes), trainer.workspace, CPU_ONLY).plan
        return needed(plan, "disk", "latents")

    assert latents(data__flip=True) > latents(data__flip=False) > 0
