"""Every row of the table is really built and stepped; schedules are held against diffusers."""

import io
import subprocess
import sys
from typing import get_args

import pytest
import torch
from diffusers.optimization import get_scheduler

from sdtrainer import optim
from sdtrainer.optim import OPTIMIZERS, OptimSection, lr_factor
from sdtrainer.seams import ParamGroup
from sdtrainer.section import UserError

SHAPES = [(8, 320), (320, 8), (320,), (16, 16, 3, 3), (80, 100), (3,), ()]
EVERY = pytest.mark.parametrize("row", OPTIMIZERS, ids=[row.name for row in OPTIMIZERS])


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def groups(params: list[torch.nn.Parameter]) -> list[ParamGroup]:
    return [ParamGroup("denoiser", params[:3], 1e-3), ParamGroup("text encoder", params[3:], 5e-4)]


def take_steps(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        optim.set_lr(optimizer, lr_factor("cosine", step, 6, 1))
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all distinct tensors in the state."""
    seen = {
        v.data_ptr(): v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)
    }
    assert seen
    return sum(v.numel() * v.element_size() for v in seen.values())


def test_the_setting_offers_exactly_the_table():
    names = tuple(row.name for row in OPTIMIZERS)
    assert get_args(optim.OptimizerName) == names
    (allowed,) = {get_args(OptimSection.model_fields["name"].annotation)}
    assert set(allowed) == {"auto", *names}


@EVERY
def test_every_optimizer_lowers_a_loss(row):
    weight = torch.nn.Parameter(torch.randn(64, 80, generator=torch.Generator().manual_seed(0)))
    optimizer = optim.build(row, [ParamGroup("denoiser", [weight], 1e-2)], OptimSection())
    losses = []
    for _ in range(40):
        loss = weight.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses


@EVERY
def test_state_bytes_are_the_bytes_held_after_one_step(row):
    params = parameters()
    optimizer = optim.build(row, groups(params), OptimSection())
    take_steps(optimizer, params, range(1, 2))
    assert optim.state_bytes(row, [p.shape for p in params]) == held_bytes(optimizer)


def test_small_parameters_share_no_tables():
    assert optim.state_bytes(optim.find("adamw8bit"), [(10, 10)]) == 800


def test_prodigy_holds_less_for_parameters_that_start_at_zero():
    row, weight = optim.find("prodigy"), torch.nn.Parameter(torch.zeros(80, 100))
    optimizer = optim.build(row, [ParamGroup("denoiser", [weight], 1.0)], OptimSection())
    take_steps(optimizer, [weight], range(1, 2))
    assert held_bytes(optimizer) == optim.state_bytes(row, [weight.shape]) - 4 * 80 * 100 + 4


@EVERY
def test_saving_and_loading_changes_nothing(row):
    """3 steps, save, load, 3 steps are bit for bit 6 steps."""
    through, first, second = parameters(), parameters(), parameters(seed=1)
    section = OptimSection()
    whole = optim.build(row, groups(through), section)
    take_steps(whole, through, range(6))

    before = optim.build(row, groups(first), section)
    take_steps(before, first, range(3))
    file = io.BytesIO()
    torch.save({"optimizer": before.state_dict(), "weights": [p.detach() for p in first]}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    after = optim.build(row, groups(second), section)
    with torch.no_grad():
        for p, value in zip(second, saved["weights"], strict=True):
            p.copy_(value)
    after.load_state_dict(saved["optimizer"])
    take_steps(after, second, range(3, 6))

    assert any(not torch.equal(a, b) for a, b in zip(through, parameters(), strict=True))
    for a, b in zip(through, second, strict=True):
        assert torch.equal(a, b)
    assert held_bytes(whole) == held_bytes(after)
    assert [g["name"] for g in after.param_groups] == ["denoiser", "text encoder"]


@EVERY
def test_evaluation_in_between_changes_nothing(row):
    plain, watched = parameters(), parameters()
    optimizers = [optim.build(row, groups(p), OptimSection()) for p in (plain, watched)]
    for step in range(4):
        take_steps(optimizers[0], plain, range(step, step + 1))
        take_steps(optimizers[1], watched, range(step, step + 1))
        with optim.for_evaluation(optimizers[1], row):
            same = all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
            assert same != (row.has_modes and step > 1)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_evaluation_of_schedule_free_sees_the_average():
    """With one constant gradient, z falls in a straight line and x is its mean."""
    row, weight = optim.find("adamw_schedulefree"), torch.nn.Parameter(torch.zeros(1))
    section = OptimSection(weight_decay=0.0)
    optimizer = optim.build(row, [ParamGroup("denoiser", [weight], 0.1)], section)
    for _ in range(4):
        weight.grad = torch.ones(1)
        optimizer.step()
    with optim.for_evaluation(optimizer, row):
        assert weight.item() == pytest.approx(-0.1 * (1 + 2 + 3 + 4) / 4, rel=1e-4)


def test_groups_keep_their_own_rates_except_where_the_optimizer_finds_it():
    def rates(name):
        optimizer = optim.build(optim.find(name), groups(parameters()), OptimSection())
        return optim.set_lr(optimizer, 0.5)

    assert rates("adamw") == {"denoiser": 5e-4, "text encoder": 2.5e-4}
    assert rates("prodigy") == {"denoiser": 0.5, "text encoder": 0.5}


def test_betas_suit_the_optimizer_unless_chosen():
    def betas(name, **knobs):
        return optim.build(optim.find(name), groups(parameters()), OptimSection(**knobs)).param_groups[0][
            "betas"
        ]

    assert betas("adamw") == (0.9, 0.999) and betas("lion") == (0.9, 0.99)
    assert betas("lion", beta1=0.95, beta2=0.98) == (0.95, 0.98)


@EVERY
def test_building_prints_nothing(row, capsys):
    optim.build(row, groups(parameters()), OptimSection())
    assert capsys.readouterr().out == ""


def test_a_missing_package_is_named():
    row = optim.Optimizer("lion", "Lion", "no_such_module:Lion", "lion-pkg", "", len)
    with pytest.raises(UserError, match="pip install lion-pkg"):
        optim.build(row, groups(parameters()), OptimSection())


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("schedule", get_args(optim.LrSchedule))
def test_lr_factor_equals_diffusers(schedule, warmup):
    names = {"constant": "constant_with_warmup", "cosine_restarts": "cosine_with_restarts"}
    total, restarts = 40, 3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(
        names.get(schedule, schedule),
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total,
        num_cycles=restarts,
    )
    for step in range(total + 1):
        ours = lr_factor(schedule, step, total, warmup, restarts)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", get_args(optim.LrSchedule))
def test_lr_factor_stays_between_floor_and_one(schedule):
    values = [lr_factor(schedule, step, 50, 5, 4, 0.1) for step in range(80)]
    assert values[0] == 0 and max(values) == 1.0 and min(values[5:]) >= 0.1
    assert values[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert lr_factor(schedule, 0, 0, 0) in (0.0, 1.0)


def test_ignored_settings_are_said():
    assert optim.warnings(optim.find("adamw"), OptimSection()) == []
    assert "Learning rate is ignored" in optim.warnings(optim.find("prodigy"), OptimSection())[0]
    free = optim.find("adamw_schedulefree")
    assert len(optim.warnings(free, OptimSection(schedule="cosine", ema=True))) == 2
    assert optim.schedule_of(free, OptimSection(schedule="cosine")) == "constant"
    assert len(optim.warnings(optim.find("adafactor"), OptimSection(beta2=0.5))) == 1


def test_importing_does_not_import_torch():
    code = "import sys, sdtrainer.optim; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
