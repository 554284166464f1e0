"""Stable Diffusion 1 and 2: one CLIP text encoder, a UNet, an 8x VAE; epsilon, v or x0 prediction.

Owns how such a model is recognised, loaded, noised, asked and sampled. Knows nothing of what is trained in
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import diffusion
from ..seams import DENOISER, VAE, Conditioning, Facts, Latents, Noised, Parts
from ..section import UserError
from . import single_file
from .quiet import no_loading_bars

if TYPE_CHECKING:
    import torch

ENCODER = "text_encoder"
WINDOW = 77
_CONFIGS = {
    DENOISER: "unet/config.json",
    VAE: "vae/config.json",
    ENCODER: "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


class StableDiffusion:
    """SD 1.x and 2.x, told apart by the width of the text encoder."""

    name = "sd"

    def recognise(self, path: str) -> Facts | None:
        folder = Path(path).expanduser()
        if folder.is_dir():
            return self._of_folder(path, "folder", lambda name: _read_json(folder / name))
        if folder.is_file():
            found = single_file.look(folder)
            if found is None:
                return None
            facts = self._facts(path, "file", found.configs, found.why)
            return replace(facts, is_undecided=not found.prediction.is_decided)
        if path.count("/") == 1 and not path.startswith((".", "/", "~")):
            return self._of_folder(path, "hub", lambda name: _read_hub_json(path, name))
        return None

    def _of_folder(self, path: str, layout: str, read: Any) -> Facts | None:
        index = read("model_index.json")
        if index is None or not str(index.get("_class_name", "")).startswith("StableDiffusionP"):
            return None
        config = {part: read(name) for part, name in _CONFIGS.items()}
        missing = [_CONFIGS[part] for part, values in config.items() if values is None]
        if missing:
            raise UserError(
                f"Base model: '{path}' lacks {', '.join(missing)}.",
                "Choose a complete diffusers folder.",
                "base.path",
            )
        width = config[DENOISER]["cross_attention_dim"]
        return self._facts(path, layout, config, f"a StableDiffusionPipeline whose text is {width} wide")

    def _facts(self, path: str, layout: str, config: dict[str, Any], why: str) -> Facts:
        unet, width = config[DENOISER], config[DENOISER]["cross_attention_dim"]
        if unet["in_channels"] != config[VAE]["latent_channels"]:
            raise UserError(
                f"Base model: '{path}' is an inpainting model ({unet['in_channels']} input channels).",
                "Choose the ordinary version of this model; inpainting models are not trained yet.",
                "base.path",
            )
        scale = 2 ** (len(config[VAE]["block_out_channels"]) - 1)
        generation = "2" if width == 1024 else "1"
        return Facts(
            family=self.name,
            title=f"Stable Diffusion {generation}",
            path=path,
            layout=layout,  # type: ignore[arg-type]
            why=why,
            prediction_type=config["scheduler"].get("prediction_type", "epsilon"),
            resolution=unet["sample_size"] * scale,
            latent_channels=unet["in_channels"],
            pixels_per_latent=scale,
            text_width=width,
            encoders=(ENCODER,),
            config=config,
        )

    def load(self, facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]) -> Parts:
        no_loading_bars()
        read = _load_file if facts.layout == "file" else _load_folder
        modules, tokenizer = read(facts, parts, dtypes)
        frozen = {part: module.requires_grad_(False).eval() for part, module in modules.items()}
        schedule = diffusion.Schedule.from_config(facts.config["scheduler"])
        return Parts(facts, frozen, {ENCODER: tokenizer}, schedule)

    def skeleton(self, facts: Facts) -> dict[str, torch.nn.Module]:
        import torch

        with torch.device("meta"):
            return {part: _built(part, facts) for part in facts.parts}

    def tokenize(self, parts: Parts, captions: Sequence[str], chunks: int) -> dict[str, torch.Tensor]:
        import torch

        tokenizer = parts.tokenizers[ENCODER]
        rows = [_windows(tokenizer, parts.written_out(caption), chunks) for caption in captions]
        return {ENCODER: torch.tensor(rows, dtype=torch.long)}

    def count_tokens(self, parts: Parts, caption: str) -> int:
        tokenizer = parts.tokenizers[ENCODER]
        return len(tokenizer(parts.written_out(caption), add_special_tokens=False).input_ids)

    def encode_text(
        self, parts: Parts, tokens: Mapping[str, torch.Tensor], clip_skip: int, sizes: torch.Tensor
    ) -> Conditioning:
        encoder, ids = parts.modules[ENCODER], tokens[ENCODER]
        output = encoder(ids.reshape(-1, WINDOW), output_hidden_states=clip_skip > 0)
        hidden = output.last_hidden_state
        if clip_skip:
            hidden = encoder.final_layer_norm(output.hidden_states[-1 - clip_skip])
        return Conditioning(hidden.reshape(ids.shape[0], ids.shape[1], -1))

    def encode_images(self, parts: Parts, pixels: torch.Tensor) -> Latents:
        posterior = parts.vae.encode(pixels).latent_dist
        scale, shift = parts.vae.config.scaling_factor, parts.vae.config.shift_factor or 0.0
        return Latents((posterior.mean - shift) * scale, posterior.std * scale)

    def noise(
        self, parts: Parts, latents: torch.Tensor, generator: torch.Generator, section: diffusion.NoiseSection
    ) -> Noised:
        kind = parts.facts.prediction_type
        schedule = parts.schedule
        timesteps = diffusion.draw_timesteps(generator, latents.shape[0], section, latents.device)
        noise = diffusion.noise_like(latents, generator, section.offset)
        weight = diffusion.loss_weight(kind, diffusion.snr(schedule, timesteps), section.min_snr_gamma)
        return Noised(
            diffusion.add_noise(latents, noise, schedule, timesteps),
            timesteps,
            diffusion.target(kind, latents, noise, schedule, timesteps),
            weight,
        )

    def predict(self, parts: Parts, noised: Noised, conditioning: Conditioning) -> torch.Tensor:
        denoiser = parts.denoiser
        return denoiser(
            noised.noisy_latents, noised.timesteps, conditioning.prompt_embeds, return_dict=False
        )[0]

    def pipeline(self, parts: Parts) -> Any:
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

        config = dict(parts.facts.config["scheduler"]) | {"prediction_type": parts.facts.prediction_type}
        if (
            parts.schedule.has_zero_terminal
        ):  # DPM++ divides by the SNR; DDIM starts from pure noise as it must
            zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            scheduler = DDIMScheduler.from_config(config | zero_snr)
        else:
            scheduler = DPMSolverMultistepScheduler.from_config(config)
        return StableDiffusionPipeline(
            vae=parts.vae,
            text_encoder=parts.modules[ENCODER],
            tokenizer=parts.tokenizers[ENCODER],
            unet=parts.denoiser,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


FAMILY = StableDiffusion()


def _load_folder(
    facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, torch.nn.Module], Any]:
    """Modules and tokenizer from a diffusers folder or the hub."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    path = _place(facts)
    makers = {
        DENOISER: lambda t: UNet2DConditionModel.from_pretrained(path, subfolder="unet", torch_dtype=t),
        VAE: lambda t: AutoencoderKL.from_pretrained(path, subfolder="vae", torch_dtype=t),
        ENCODER: lambda t: CLIPTextModel.from_pretrained(path, subfolder="text_encoder", dtype=t),
    }
    try:
        modules = {part: makers[part](dtypes[part]) for part in parts}
        return modules, CLIPTokenizer.from_pretrained(path, subfolder="tokenizer")
    except (OSError, ValueError) as error:
        raise UserError(
            f"Base model: '{facts.path}' could not be loaded ({str(error).splitlines()[0][:200]}).",
            "Check that the folder is complete, or that this machine is online for a hub id.",
            "base.path",
        ) from error


def _load_file(
    facts: Facts, parts: Sequence[str], dtypes: Mapping[str, torch.dtype]
) -> tuple[dict[str, torch.nn.Module], Any]:
    """Modules and tokenizer from a single file."""
    from accelerate import init_empty_weights

    path = Path(_place(facts))
    with init_empty_weights(include_buffers=False):
        empty = {part: _built(part, facts) for part in parts}
    return single_file.modules(path, empty, facts.config, dtypes), single_file.tokenizer(path, facts.config)


def _built(part: str, facts: Facts) -> torch.nn.Module:
    """One module from its config, with no weights worth keeping."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    makers = {
        DENOISER: UNet2DConditionModel.from_config,
        VAE: AutoencoderKL.from_config,
        ENCODER: lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    }
    return makers[part](facts.config[part])


def _place(facts: Facts) -> str:
    return facts.path if facts.layout == "hub" else str(Path(facts.path).expanduser())


def _windows(tokenizer: Any, caption: str, chunks: int) -> list[int]:
    """Token ids of a caption as `chunks` windows of start, 75 tokens, end, padding."""
    ids, row = tokenizer(caption, add_special_tokens=False).input_ids, []
    for chunk in range(chunks):
        words = ids[chunk * (WINDOW - 2) : (chunk + 1) * (WINDOW - 2)]
        padding = [tokenizer.pad_token_id] * (WINDOW - 2 - len(words))
        row += [tokenizer.bos_token_id, *words, tokenizer.eos_token_id, *padding]
    return row


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"Base model: {path} is not valid JSON.", "Restore this file of the model.", "base.path"
        ) from error


def _read_hub_json(repo: str, name: str) -> dict[str, Any] | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return _read_json(Path(hf_hub_download(repo, name)))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"Base model: '{repo}' is neither a folder here nor in the hub cache, and the hub cannot be "
            f"reached.",
            "Check the path, or go online once to download it.",
            "base.path",
        ) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, ValueError) as error:
        raise UserError(
            f"Base model: the hub does not give out '{repo}'.", "Check the id.", "base.path"
        ) from error
