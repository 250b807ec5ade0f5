"""What a diffusers scheduler's config says about the training of its network.

A scheduler's config mixes two things: how the network was trained (the table of betas, what it predicts, how it is told
the noise) and how diffusers would sample it (spacing, clipping, thresholding, last sigma, Karras sigmas). Only the
first concerns a denoiser; the second is the choice of a solver and a grid here. There are three families:

* a table of betas: alpha^2 = cumulative product of 1 - beta. The network sees x_t itself and is told the entry. The
  table is made in float32, in the order in which it was made for the training, so that it is the same to the bit.
  (Where it ends in pure noise, some of their samplers replace the last 0 by 2^-24; the network was trained on the 0.)
* EDM: x_0 + sigma eps, shown at unit variance and told log(sigma) / 4. Karras et al. 2022, arXiv:2206.00364.
* flow matching: (1 - sigma) x_0 + sigma eps, told 1000 sigma. `shift` is kept as a `Shifted` schedule, on which a
  uniform grid is theirs. Esser et al. 2024, arXiv:2403.03206, Eq. 23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.errors import UserError
from backdrift.interop.foreign import Convention, Entry, LogLevel, Share
from backdrift.schedule import EDM, VE, Flow, Shifted, Tabulated
from backdrift.target import EDM_F, EPS, X0, Target, V

TABLES = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


@dataclass(frozen=True)
class Straight(Target):
    """p = eps - x_0, the velocity of the straight path, on any clock. Liu et al. 2023, arXiv:2209.03003, Eq. 1."""

    def row(self, schedule, t):
        alpha, _ = schedule.alpha_sigma(t)
        return -torch.ones_like(alpha), torch.ones_like(alpha)

    def skip_out(self, schedule, t):
        alpha, sigma = schedule.alpha_sigma(t)
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)


@dataclass(frozen=True)
class Negative(Target):
    """Another target with the sign turned."""

    base: Target

    def row(self, schedule, t):
        a, b = self.base.row(schedule, t)
        return -a, -b

    def skip_out(self, schedule, t):
        skip, out = self.base.skip_out(schedule, t)
        return skip, -out


def read(config: Mapping) -> Convention:
    """The convention of a scheduler's config, a mapping as in scheduler_config.json.

    Raises `UserError` for a scheduler of another family, and for an unknown table or prediction.
    """
    name = config.get("_class_name")
    if name in FLOWS or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return _flow(config)
    if name in EDMS:
        return _edm(config)
    if name in TABLES:
        return _table(config)
    known = ", ".join([*TABLES, *EDMS, *FLOWS])
    raise UserError(f"The scheduler {name!r} is of a family that cannot be read; these can: {known}.")


def _predicted(config: Mapping, targets: Mapping[str, Target]) -> Target:
    word = config.get("prediction_type", "epsilon")
    if word not in targets:
        raise UserError(
            f"The scheduler's prediction_type {word!r} is unknown for a {config['_class_name']}; "
            f"these are known: {', '.join(targets)}."
        )
    return targets[word]


def _table(config: Mapping) -> Convention:
    target = _predicted(config, {"epsilon": EPS(), "sample": X0(), "v_prediction": V()})
    products = (1.0 - betas(config)).cumprod(0)
    schedule = Tabulated(tuple(products.double().tolist()))
    # one scheduler tells networks that predict v the noise as EDM does; on this table S = 1 for sigma_data = 1
    continuous = config.get("timestep_type") == "continuous" and target == V()
    return Convention(schedule, target, LogLevel(1.0) if continuous else Entry(len(products)))


def betas(config: Mapping) -> Tensor:
    """The table of betas (K,) in float32, exactly as it was made for the training.

    Raises `UserError` for an unknown beta_schedule.
    """
    if config.get("trained_betas") is not None:
        made = torch.tensor(config["trained_betas"], dtype=torch.float32)
    else:
        count, word = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
        low, high = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
        tables = {
            "linear": lambda: torch.linspace(low, high, count),
            "scaled_linear": lambda: torch.linspace(low**0.5, high**0.5, count) ** 2,
            "squaredcos_cap_v2": lambda: _cosine(count),
            "sigmoid": lambda: torch.sigmoid(torch.linspace(-6, 6, count)) * (high - low) + low,
        }
        if word not in tables:
            raise UserError(f"The scheduler's beta_schedule {word!r} is unknown; these are known: {', '.join(tables)}.")
        made = tables[word]()
    return _to_pure_noise(made) if config.get("rescale_betas_zero_snr") else made


def _cosine(count: int) -> Tensor:
    """Nichol and Dhariwal 2021, arXiv:2102.09672, Eq. 17, with betas of at most 0.999."""

    def product(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = (product((k + 1) / count) / product(k / count) for k in range(count))
    return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float32)


def _to_pure_noise(made: Tensor) -> Tensor:
    """The betas whose alpha is shifted to end in 0 and scaled to start as before. Lin et al. 2024, arXiv:2305.08891."""
    alphas = (1.0 - made).cumprod(0).sqrt()
    first, last = alphas[0].clone(), alphas[-1].clone()
    squares = ((alphas - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([squares[:1], squares[1:] / squares[:-1]])


def _edm(config: Mapping) -> Convention:
    data, low, high = config.get("sigma_data", 0.5), config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
    target = _predicted(config, {"epsilon": EDM_F(data), "v_prediction": Negative(EDM_F(data))})
    # "exponential" is uniform in log(sigma)
    exponential = config.get("sigma_schedule") == "exponential"
    schedule = VE(low, high) if exponential else EDM(low, high, config.get("rho", 7.0))
    return Convention(schedule, target, LogLevel(data))


def _flow(config: Mapping) -> Convention:
    word = config.get("prediction_type", "flow_prediction")
    if word != "flow_prediction":
        raise UserError(f"The scheduler's prediction_type {word!r} does not go with flow matching.")
    # a shift that depends on the size of the picture is made for each grid: it changes no network
    shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", config.get("flow_shift", 1.0))
    schedule = Flow() if shift in (1.0, None) else Shifted(Flow(), float(shift))
    return Convention(schedule, Straight(), Share(config.get("num_train_timesteps", 1000)))
