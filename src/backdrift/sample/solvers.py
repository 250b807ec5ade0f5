"""The samplers by the names that users type: `bd.solvers.DDIM()`."""

from backdrift.sample.ancestral import Bridge, Reveal
from backdrift.sample.ode import DPMpp, Euler, Heun
from backdrift.sample.sde import DDIM, DDPM

__all__ = ["DDIM", "DDPM", "Bridge", "DPMpp", "Euler", "Heun", "Reveal"]
