"""A scheduler's config says how its network was trained: tables by hand, targets and clocks by their definitions."""

import math

import numpy as np
import pytest
import torch

import backdrift as bd
from backdrift.interop.diffusers.schedulers import Negative, Straight, betas, read
from backdrift.interop.foreign import Entry, LogLevel, Share

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
EDM = {"_class_name": "EDMEulerScheduler"}
DDPM = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


def test_tables():
    k = np.arange(1000) / 999
    linear, root = 1e-4 + k * (0.02 - 1e-4), (1e-2 + k * (math.sqrt(0.02) - 1e-2)) ** 2
    sigmoid = 1 / (1 + np.exp(6 - 12 * k)) * (0.02 - 1e-4) + 1e-4
    squares = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    cosine = np.minimum(1 - squares[1:] / squares[:-1], 0.999)
    tables = {"linear": linear, "scaled_linear": root, "sigmoid": sigmoid, "squaredcos_cap_v2": cosine}
    for name, table in tables.items():
        np.testing.assert_allclose(betas(DDPM | {"beta_schedule": name}).numpy(), table, rtol=1e-4, err_msg=name)
        schedule = read(DDPM | {"beta_schedule": name}).schedule
        for entry in (0, 499, 999):
            alpha, sigma = schedule.alpha_sigma((entry + 1) / 1000)
            expected = np.prod(1 - table[: entry + 1])
            np.testing.assert_allclose(float(alpha) ** 2, expected, rtol=2e-4)
            np.testing.assert_allclose(float(sigma) ** 2, 1 - expected, rtol=2e-3)
    given = read(DDPM | {"trained_betas": [0.5, 0.5]}).schedule
    np.testing.assert_allclose(given.alphas_bar, (0.5, 0.25))


def test_a_table_that_is_scaled_to_end_in_pure_noise():
    before = np.sqrt(read(DDPM).schedule.alphas_bar)
    after = read(DDPM | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}).schedule
    expected = (before - before[-1]) * before[0] / (before[0] - before[-1])
    np.testing.assert_allclose(np.sqrt(after.alphas_bar), expected, atol=1e-5)
    assert after.alphas_bar[-1] == 0
    # noise says nothing about the data there
    with pytest.raises(bd.UserError, match="EPS cannot recover"):
        net = torch.nn.Identity()
        bd.interop.Foreign(net, read(DDPM | {"rescale_betas_zero_snr": True}), (1,))


def test_what_is_predicted_and_told():
    euler = {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", "prediction_type": "v_prediction"}
    edm = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.7, "sigma_max": 50.0}
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    target = bd.target
    for config, expected in [
        (DDPM, (target.EPS(), Entry(1000))),
        (DDPM | {"prediction_type": "sample"}, (target.X0(), Entry(1000))),
        (DDPM | {"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}, (target.V(), Entry(1000))),
        (DDPM | {"trained_betas": [0.5, 0.5]}, (target.EPS(), Entry(2))),
        (euler, (target.V(), LogLevel(1.0))),
        (edm, (target.EDM_F(0.7), LogLevel(0.7))),
        (edm | {"prediction_type": "v_prediction"}, (Negative(target.EDM_F(0.7)), LogLevel(0.7))),
        (flow, (Straight(), Share(1000))),
    ]:
        found = read(config)
        assert (found.target, found.clock) == expected, config
    assert read(edm).schedule == bd.schedule.EDM(0.002, 50.0, 7.0)
    assert read(edm | {"sigma_schedule": "exponential"}).schedule == bd.schedule.VE(0.002, 50.0)
    shifted = bd.schedule.Shifted(bd.schedule.Flow(), 3.0)
    assert read(flow).schedule == shifted
    other = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0}
    assert read(other | {"prediction_type": "flow_prediction"}).schedule == shifted
    assert read(flow | {"use_dynamic_shifting": True}).schedule == bd.schedule.Flow()


@pytest.mark.parametrize("schedule", [bd.schedule.Flow(), bd.schedule.VP(), bd.schedule.EDM()], ids=repr)
@pytest.mark.parametrize("target", [Straight(), Negative(bd.target.EDM_F(0.7))], ids=repr)
def test_targets_give_the_data_back(schedule, target):
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    x0, eps = 0.3, -1.1
    alpha, sigma = schedule.alpha_sigma(t)
    (a, b), (skip, out) = target.row(schedule, t), target.skip_out(schedule, t)
    torch.testing.assert_close(skip * (alpha * x0 + sigma * eps) + out * (a * x0 + b * eps), torch.full_like(t, x0))


@pytest.mark.parametrize("config", [DDPM, EDM, FLOW])
def test_clocks_go_both_ways(config):
    found = read(config)
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    told = found.clock.told(found.schedule, t)
    torch.testing.assert_close(found.clock.time(found.schedule, told), t, rtol=1e-9, atol=1e-12)
    assert bool((told.diff() > 0).all())


def test_words_of_the_clocks():
    """Entries are whole at their own times, and fractions between; flows are told 1000 sigma, EDM log(sigma) / 4."""
    table, flow, edm = (read(config) for config in (DDPM, FLOW, EDM))
    entries = torch.arange(1000)
    told = table.clock.told(table.schedule, (entries + 1) / 1000.0).float()
    torch.testing.assert_close(told, entries.float(), rtol=0, atol=1e-3)
    exact = table.clock.told(table.schedule, (entries.double() + 1) / 1000).float()
    assert torch.equal(exact, entries.float())
    assert abs(float(table.clock.told(table.schedule, 0.0505)) - 49.5) < 1e-9
    assert float(table.clock.told(table.schedule, 0.0)) == 0
    # shift 3: half of the way in time is three quarters in noise
    assert abs(float(flow.clock.told(flow.schedule, 0.5)) - 750) < 1e-9
    sigma = edm.schedule.alpha_sigma(0.3)[1]
    assert abs(float(edm.clock.told(edm.schedule, 0.3) - sigma.log() / 4)) < 1e-12
    assert abs(float(edm.clock.scale(edm.schedule, 0.3) - (sigma**2 + 0.25) ** -0.5)) < 1e-12


def test_mistakes():
    for words, config in [
        ("of a family that cannot be read", {"_class_name": "ScoreSdeVeScheduler"}),
        ("of a family that cannot be read", {}),
        ("prediction_type 'score' is unknown", DDPM | {"prediction_type": "score"}),
        ("beta_schedule 'quadratic' is unknown", DDPM | {"beta_schedule": "quadratic"}),
        ("does not go with flow matching", DDPM | {"use_flow_sigmas": True, "prediction_type": "epsilon"}),
    ]:
        with pytest.raises(bd.UserError, match=words):
            read(config)
