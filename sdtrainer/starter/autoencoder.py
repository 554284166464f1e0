"""Writes the encoder of the starter's AutoencoderKL: the patch space's linear map, as convolutions.

Each down block gathers 2x2 places into more channels, and the last gather completes the projection, so the
encoder's mean equals PatchSpace.encode without any training.  Only the decoder has something to learn.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

from sdtrainer.starter.latents import CHANNELS, PATCH, PatchSpace

CONSTANT = 100.0  # far above any latent, and its square is within half precision
LOG_VARIANCE = -12.0


def write_encoder(vae: AutoencoderKL, space: PatchSpace) -> None:
    """Set the encoder's weights so that it computes exactly the patch space's latents."""
    encoder = vae.encoder
    with torch.no_grad():
        _set_taps(encoder.conv_in, torch.eye(3)[:, :, None, None], at=1)
        blocks = [*encoder.down_blocks, encoder.mid_block]
        for resnet in (resnet for block in blocks for resnet in block.resnets):
            _pass_through(resnet)
        for attention in encoder.mid_block.attentions:
            attention.to_out[0].weight.zero_()
            attention.to_out[0].bias.zero_()
        projection = (space.components / space.deviation[:, None]).reshape(CHANNELS, 3, PATCH, PATCH)
        gathers = [block.downsamplers[0].conv for block in encoder.down_blocks[:3]]
        _set_taps(gathers[0], _pixel_gather(), at=0)
        _set_taps(gathers[1], _quadrant_gather(projection), at=0)
        _finish_projection(gathers[2], projection.flatten(1) @ space.mean)
        _leave_normalisation(encoder)
        _set_taps(vae.quant_conv, torch.eye(2 * CHANNELS)[:, :, None, None], at=0)
        _set_taps(vae.post_quant_conv, torch.eye(CHANNELS)[:, :, None, None], at=0)


def _set_taps(convolution: nn.Conv2d, taps: torch.Tensor, at: int) -> None:
    convolution.weight.zero_()
    convolution.bias.zero_()
    outputs, inputs, height, width = taps.shape
    convolution.weight[:outputs, :inputs, at : at + height, at : at + width] = taps


def _pass_through(resnet: nn.Module) -> None:
    resnet.conv2.weight.zero_()
    resnet.conv2.bias.zero_()
    if resnet.conv_shortcut is not None:
        outputs, inputs = resnet.conv_shortcut.weight.shape[:2]
        _set_taps(resnet.conv_shortcut, torch.eye(outputs, inputs)[:, :, None, None], at=0)


def _pixel_gather() -> torch.Tensor:
    # 2x2 pixels of 3 colours become 12 channels.
    return torch.eye(12).reshape(12, 3, 2, 2)


def _quadrant_gather(projection: torch.Tensor) -> torch.Tensor:
    # Every 4x4 pixels compute what they would add to each latent in each of the four quadrants of a patch.
    taps = projection.reshape(CHANNELS, 3, 2, 2, 2, 2, 2, 2)  # latent, colour, then y and x as three halvings
    taps = taps.permute(0, 2, 5, 1, 4, 7, 3, 6)  # latent, quadrant yx | colour, pixel yx | tap yx
    return taps.reshape(4 * CHANNELS, 12, 2, 2)


def _finish_projection(convolution: nn.Conv2d, offset: torch.Tensor) -> None:
    taps = torch.eye(4 * CHANNELS).reshape(CHANNELS, 4, 4 * CHANNELS).reshape(CHANNELS, 2, 2, 4 * CHANNELS)
    taps = taps.permute(0, 3, 1, 2)
    # The negated copy and the constants are for the normalisation at the end: see there.
    _set_taps(convolution, torch.cat([taps, -taps]), at=0)
    convolution.bias[:CHANNELS] = -offset
    convolution.bias[CHANNELS : 2 * CHANNELS] = offset
    convolution.bias[2 * CHANNELS : 3 * CHANNELS] = CONSTANT
    convolution.bias[3 * CHANNELS : 4 * CHANNELS] = -CONSTANT


def _leave_normalisation(encoder: nn.Module) -> None:
    # In the first group of 16 channels, latents and their negatives cancel and the constants set the
    # deviation to CONSTANT / sqrt(2); the norm's own weight takes that back.  And silu(z) - silu(-z) is z.
    norm = encoder.conv_norm_out
    norm.weight.zero_()
    norm.bias.zero_()
    norm.weight[: 2 * CHANNELS] = CONSTANT / 2**0.5
    identity = torch.eye(CHANNELS)
    _set_taps(encoder.conv_out, torch.cat([identity, -identity], dim=1)[:, :, None, None], at=1)
    encoder.conv_out.bias[CHANNELS:] = LOG_VARIANCE
