"""The arithmetic against diffusers' schedulers where they have it, else against its inverses and limits."""

import math
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from pydantic import ValidationError

from sdtrainer import diffusion as d
from sdtrainer import flow
from sdtrainer.section import UserError, walk

SD1 = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
CONFIGS = {
    "sd1": SD1,
    "linear": {
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "num_train_timesteps": 1000,
    },
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000},
    "trained": {"trained_betas": [0.1, 0.2, 0.3, 0.4], "num_train_timesteps": 4},
    "zero": SD1 | {"rescale_betas_zero_snr": True},
    "defaults": {},
}
TYPES = ("epsilon", "v_prediction", "sample")


@pytest.fixture
def schedule() -> d.Schedule:
    return d.Schedule.from_config(SD1)


def drawn(seed: int = 0, batch: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, 4, 8, 6, generator=generator)
    return (
        latents,
        torch.randn(latents.shape, generator=generator),
        torch.tensor([0, 1, 250, 500, 998, 999])[:batch],
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_schedule_equals_diffusers(config):
    ours, theirs = d.Schedule.from_config(config), DDPMScheduler.from_config(config)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-5, atol=1e-6)
    assert ours.has_zero_terminal == bool(config.get("rescale_betas_zero_snr"))
    assert ours.alphas_cumprod.dtype == torch.float32


def test_schedule_of_sd1_is_bit_identical_to_diffusers(schedule):
    assert torch.equal(schedule.alphas_cumprod, DDPMScheduler.from_config(SD1).alphas_cumprod)


def test_rescaled_equals_diffusers_and_ends_at_exactly_zero(schedule):
    rescaled = schedule.rescaled()
    betas = rescale_zero_terminal_snr(DDPMScheduler.from_config(SD1).betas)
    torch.testing.assert_close(rescaled.alphas_cumprod, torch.cumprod(1 - betas, 0), rtol=1e-5, atol=1e-6)
    assert rescaled.alphas_cumprod[-1] == 0 and rescaled.has_zero_terminal
    torch.testing.assert_close(rescaled.alphas_cumprod[0], schedule.alphas_cumprod[0])
    assert rescaled.rescaled() is rescaled
    assert rescaled.to("cpu").has_zero_terminal


def test_unknown_schedule_is_refused_by_name():
    with pytest.raises(UserError, match="sigmoid"):
        d.Schedule.from_config({"beta_schedule": "sigmoid"})


@pytest.mark.parametrize("config", [SD1, CONFIGS["zero"]], ids=["sd1", "zero"])
def test_noise_and_velocity_equal_diffusers(config):
    latents, noise, t = drawn()
    ours, theirs = d.Schedule.from_config(config), DDPMScheduler.from_config(config)
    torch.testing.assert_close(d.add_noise(latents, noise, ours, t), theirs.add_noise(latents, noise, t))
    torch.testing.assert_close(
        d.target("v_prediction", latents, noise, ours, t), theirs.get_velocity(latents, noise, t)
    )


@pytest.mark.parametrize("prediction_type", TYPES)
def test_diffusers_finds_the_latents_by_a_right_prediction(schedule, prediction_type):
    latents, noise, t = drawn()
    noisy = d.add_noise(latents, noise, schedule, t)
    prediction = d.target(prediction_type, latents, noise, schedule, t)
    theirs = DDPMScheduler.from_config(SD1, prediction_type=prediction_type, clip_sample=False)
    for number, timestep in enumerate(t.tolist()):
        found = theirs.step(prediction[[number]], timestep, noisy[[number]]).pred_original_sample
        torch.testing.assert_close(found, latents[[number]], rtol=0, atol=1e-4)


def test_v_stays_well_posed_where_only_noise_is_left(schedule):
    latents, noise, _ = drawn(batch=2)
    t, zero = torch.tensor([999, 999]), schedule.rescaled()
    assert torch.equal(d.add_noise(latents, noise, zero, t), noise)
    assert torch.equal(d.target("v_prediction", latents, noise, zero, t), -latents)


def test_dtype_of_latents_is_kept(schedule):
    latents, noise, t = (x.to(torch.bfloat16) if x.is_floating_point() else x for x in drawn())
    assert d.add_noise(latents, noise, schedule, t).dtype == torch.bfloat16
    assert d.target("v_prediction", latents, noise, schedule, t).dtype == torch.bfloat16


def test_weights_are_the_papers_and_agree_on_the_error_of_x0(schedule):
    """One true objective: weight times the error is the same, whichever of x0, eps and v is predicted."""
    latents, noise, t = drawn()
    noisy = d.add_noise(latents, noise, schedule, t)
    guess = latents + 0.1 * noise.flip(0)
    alpha, sigma = schedule.alpha_sigma(t, latents)
    said = {
        "sample": guess,
        "epsilon": (noisy - alpha * guess) / sigma,
        "v_prediction": (alpha * noisy - guess) / sigma,
    }
    section, ratio = d.NoiseSection(), d.snr(schedule, t)
    losses = [
        d.loss_weight(kind, ratio, 5.0)
        * d.error(said[kind], d.target(kind, latents, noise, schedule, t), section)
        for kind in TYPES
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-3, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("epsilon", [1, 1, 1, 0.5, 0]),
        ("v_prediction", [0, 0.5, 5 / 6, 5 / 11, 0]),
        ("sample", [0, 1, 5, 5, 5]),
    ],
)
def test_weights_are_finite_at_both_ends(kind, expected):
    weights = d.loss_weight(kind, torch.tensor([0.0, 1.0, 5.0, 10.0, math.inf]), 5.0)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))
    assert torch.equal(d.loss_weight(kind, torch.tensor([0.0, math.inf]), 0.0), torch.ones(2))


def test_snr_is_zero_and_infinite_at_the_ends():
    schedule = d.Schedule(torch.tensor([1.0, 0.5, 0.0]), has_zero_terminal=True)
    assert d.snr(schedule, torch.arange(3)).tolist() == [math.inf, 1.0, 0.0]


def test_huber_is_the_squared_error_up_to_delta_and_linear_beyond():
    section = d.NoiseSection(loss="huber", huber_delta=0.5)
    target = torch.zeros(3, 1, 1, 1)
    prediction = torch.tensor([0.4, 1.0, 2.0]).view(3, 1, 1, 1)
    expected = [0.4**2, 2 * 0.5 * (1.0 - 0.25), 2 * 0.5 * (2.0 - 0.25)]
    torch.testing.assert_close(d.error(prediction, target, section), torch.tensor(expected))


def test_error_is_one_number_per_sample_in_fp32():
    latents, noise, _ = drawn()
    error = d.error(latents.to(torch.float16), noise.to(torch.float16), d.NoiseSection())
    assert error.shape == (6,) and error.dtype == torch.float32
    torch.testing.assert_close(error, (latents - noise).square().mean((1, 2, 3)), rtol=5e-3, atol=0)


def test_timesteps_fill_their_range_and_repeat_with_the_seed():
    section = d.NoiseSection(min_timestep=10, max_timestep=20)
    draws = [d.draw_timesteps(torch.Generator().manual_seed(1), 500, section, "cpu") for _ in range(2)]
    assert torch.equal(*draws)
    assert set(draws[0].tolist()) == set(range(10, 20))


def test_offset_adds_variance_to_the_mean_of_each_channel_only():
    latents = torch.zeros(400, 4, 16, 16)
    noise = d.noise_like(latents, torch.Generator().manual_seed(0), offset=0.5)
    means = noise.mean((2, 3))
    assert means.var().item() == pytest.approx(0.25 + 1 / 256, rel=0.1)
    assert (noise - means[:, :, None, None]).var().item() == pytest.approx(1.0, rel=0.02)
    plain = d.noise_like(latents, torch.Generator().manual_seed(0))
    assert torch.equal(plain, torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)))


def test_flow_equals_diffusers_and_inverts():
    latents, noise, _ = drawn()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    s = scheduler.sigmas[[0, 100, 300, 500, 900, 999]]
    noisy = flow.add_noise(latents, noise, s)
    timesteps = scheduler.timesteps[[0, 100, 300, 500, 900, 999]]
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, timesteps, noise))
    left = noisy - s.view(-1, 1, 1, 1) * flow.target(latents, noise)
    torch.testing.assert_close(left, latents, rtol=0, atol=1e-5)
    plain = torch.linspace(1, 1000, 1000).flip(0) / 1000
    torch.testing.assert_close(flow.shift(plain, 3.0), scheduler.sigmas[:1000])


def test_flow_densities_have_the_papers_shape():
    generator = torch.Generator().manual_seed(0)
    s = flow.draw_logit_normal(generator, 20_000, "cpu", mean=0.5, std=2.0)
    logits = torch.logit(s.double())
    assert logits.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logits.std().item() == pytest.approx(2.0, abs=0.05)
    for scale in (-1.0, 0.0, 1.29):
        s = flow.draw_mode(generator, 200_000, "cpu", scale)
        assert s.min() >= 0.0 and s.max() <= 1.0
        density = ((s - 0.5).abs() < 0.01).float().mean().item() / 0.02
        assert density == pytest.approx(1 / (1 - scale * (math.pi / 2 - 1)), rel=0.15)


def test_nothing_reads_a_tensor_back():
    """Meta tensors have no values: whatever would wait for the GPU fails on them."""
    schedule = d.Schedule(torch.empty(1000, device="meta"))
    latents, t = torch.empty(2, 4, 8, 8, device="meta"), torch.empty(2, dtype=torch.long, device="meta")
    noisy = d.add_noise(latents, latents, schedule, t)
    for kind in TYPES:
        target = d.target(kind, latents, latents, schedule, t)
        loss = d.loss_weight(kind, d.snr(schedule, t), 5.0) * d.error(
            noisy, target, d.NoiseSection(loss="huber")
        )
        assert loss.shape == (2,)
    s = flow.shift(t.float(), 3.0)
    noised = flow.add_noise(latents, latents, s) + flow.target(latents, latents)
    assert noised.shape == latents.shape


def test_ill_posed_settings_are_refused_with_the_remedy():
    zero = d.NoiseSection(zero_terminal_snr=True)
    for kind in ("epsilon", "flow"):
        with pytest.raises(UserError, match="Turn Zero terminal SNR off") as caught:
            d.check(zero, kind)
        assert caught.value.path == "noise.zero_terminal_snr"
    d.check(zero, "v_prediction")
    d.check(d.NoiseSection(), "epsilon")
    with pytest.raises(
        ValidationError, match=r"Last timestep \(5\) must be greater than First timestep \(5\)"
    ):
        d.NoiseSection(min_timestep=5, max_timestep=5)


def test_ignored_settings_are_said():
    assert d.warnings(d.NoiseSection(), "flow") == []
    odd = d.NoiseSection(min_snr_gamma=1, offset=0.05, density="uniform", shift=1)
    said = d.warnings(odd, "flow"), d.warnings(odd, "epsilon")
    assert all(len(lines) == 2 and all("ignored" in line for line in lines) for lines in said)
    assert not set(said[0]) & set(said[1])
    assert len(d.warnings(d.NoiseSection(zero_terminal_snr=True, offset=0.05), "v_prediction")) == 2
    assert d.warnings(d.NoiseSection(), "epsilon") == []


def test_every_setting_is_declared_for_the_form_without_torch():
    import pydantic

    class Holder(pydantic.BaseModel):
        noise: d.NoiseSection

    assert {k.name for k in walk(Holder)} == set(d.NoiseSection.model_fields)
    code = "import sys, sdtrainer.diffusion; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
