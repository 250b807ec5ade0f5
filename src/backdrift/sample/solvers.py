"""The samplers by the names that users type: `bd.solvers.DDIM()`."""

from backdrift.sample.adaptive import AdaptiveRK, GaussianStart
from backdrift.sample.ancestral import Bridge, Reveal
from backdrift.sample.default import AdamsFlow
from backdrift.sample.exponential import DPMpp2S, DPMSolver, ExponentialRK
from backdrift.sample.expsde import SDE2M, SDE2S, SDE3M, Churn, PublishedSDE3M
from backdrift.sample.fixed import IPNDM, PLMS
from backdrift.sample.langevin import AnnealedLangevin, EulerMaruyama, PredictorCorrector, ReverseDiffusion
from backdrift.sample.multistep import DEIS, ERSDE, LMS, ExactDPMpp, LogDEIS, Multistep, SASolver
from backdrift.sample.ode import DPMpp, Euler, Heun
from backdrift.sample.sde import DDIM, DDPM, Jump
from backdrift.sample.unipc import PublishedUniPC, UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "ERSDE",
    "IPNDM",
    "LMS",
    "PLMS",
    "SDE2M",
    "SDE2S",
    "SDE3M",
    "AdamsFlow",
    "AdaptiveRK",
    "AnnealedLangevin",
    "Bridge",
    "Churn",
    "DPMSolver",
    "DPMpp",
    "DPMpp2S",
    "Euler",
    "EulerMaruyama",
    "ExactDPMpp",
    "ExponentialRK",
    "GaussianStart",
    "Heun",
    "Jump",
    "LogDEIS",
    "Multistep",
    "PredictorCorrector",
    "PublishedSDE3M",
    "PublishedUniPC",
    "Reveal",
    "ReverseDiffusion",
    "SASolver",
    "UniPC",
]
