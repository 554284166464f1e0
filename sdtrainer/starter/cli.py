"""The command line that makes the starter model: every stage alone, or all of them in order."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ASSETS = REPOSITORY / "assets"


@dataclass(frozen=True)
class Job:
    """What the stages need to know."""

    work: Path
    assets: Path
    minutes: float | None
    seed: int
    threads: int

    @property
    def model(self) -> Path:
        """Where the finished pipeline goes."""
        return self.assets / "starter-model"

    def minutes_or(self, usual: float) -> float:
        """The minutes asked for, or the stage's usual ones."""
        return usual if self.minutes is None else self.minutes


def main(argv: list[str]) -> int:
    """Run the stage named first in argv; return the exit status."""
    arguments = _parser().parse_args(argv)
    job = Job(arguments.work, arguments.assets, arguments.minutes, arguments.seed, arguments.threads)
    job.work.mkdir(parents=True, exist_ok=True)
    _limit_threads(job.threads)
    names = list(STAGES) if arguments.stage == "all" else [arguments.stage]
    for name in names:
        print(f"starter: {name}", flush=True)
        STAGES[name](job)
    return 0


def make_robot(job: Job) -> None:
    """Draw the zib robot's training and held-out pictures."""
    from sdtrainer.starter.robot import write_robot_drawings

    write_robot_drawings(job.assets / "starter-images", job.assets / "starter-held-out")


def make_tokenizer(job: Job) -> None:
    """Learn the tokenizer."""
    from sdtrainer.starter.vocabulary import write_tokenizer

    print(f"{write_tokenizer(job.work / 'tokenizer', job.seed)} tokens")


def make_latents(job: Job) -> None:
    """Fit the latent space."""
    import random

    from sdtrainer.starter.drawing import world_batch
    from sdtrainer.starter.latents import fit_patch_space
    from sdtrainer.starter.vae_training import psnr

    pictures, _ = world_batch(random.Random(f"patch space {job.seed}"), 1500)
    space = fit_patch_space(pictures)
    space.save(job.work / "patch-space.safetensors")
    print(f"linear decoder: {psnr(pictures, space.decode(space.encode(pictures))):.1f} dB")


def train_vae(job: Job) -> None:
    """Write the encoder and train the decoder."""
    from sdtrainer.starter.vae_training import train_vae

    print(f"autoencoder: {train_vae(job.work, job.minutes_or(40), job.seed):.1f} dB")


def train_unet(job: Job) -> None:
    """Train the UNet and the text encoder."""
    from transformers import CLIPTokenizer

    from sdtrainer.starter.unet_training import train_unet

    tokenizer = CLIPTokenizer.from_pretrained(job.work / "tokenizer")
    print(f"{train_unet(job.work, tokenizer, job.minutes_or(80), job.seed)} steps")


def train_judge(job: Job) -> None:
    """Train the judge and put it beside the pipeline."""
    from sdtrainer.starter.judge_training import train_judge

    judge = train_judge(job.work, job.minutes_or(8), job.seed)
    job.model.mkdir(parents=True, exist_ok=True)
    judge.save(job.model)
    print(f"judge: {judge.accuracy:.1%} of held-out renderings named rightly")


def assemble_model(job: Job) -> None:
    """Write the pipeline's folder from the last checkpoints."""
    from sdtrainer.starter.assembly import assemble

    assemble(job.work, job.model)


def draw_grid(job: Job) -> None:
    """Draw the fixed prompts, count what the judge recognises, keep the sheet."""
    from sdtrainer.starter.grid import draw_sheet, lay_out, load_pipeline
    from sdtrainer.starter.judge import Judge
    from sdtrainer.starter.prompts import WORLD_PROMPTS

    sheet = draw_sheet(load_pipeline(job.model), Judge.load(job.model), WORLD_PROMPTS)
    lay_out(sheet).save(job.model / "grid.jpg", quality=88)
    print(f"{sheet.right} of {len(sheet.prompts)} named rightly")
    print("\n".join(sheet.mistakes()))


STAGES: dict[str, Callable[[Job], None]] = {
    "robot": make_robot,
    "tokenizer": make_tokenizer,
    "latents": make_latents,
    "vae": train_vae,
    "unet": train_unet,
    "judge": train_judge,
    "assemble": assemble_model,
    "grid": draw_grid,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdtrainer starter", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--work", type=Path, default=Path(".starter"), help="where unfinished work is kept")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="where finished files go")
    parser.add_argument("--minutes", type=float, help="training time of a stage, earlier runs included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
