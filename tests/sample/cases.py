"""What the tests of the samplers share: schedules, exact denoisers written out by hand, and the fit of an order."""

import math

import numpy as np
import torch

from backdrift.denoiser import Denoiser
from backdrift.posterior import TensorPosterior, expand
from backdrift.process import Gaussian
from backdrift.schedule import EDM, VE, VP, Cosine, Flow, Shifted, Tabulated, Trig

SCHEDULES = {
    "VP": VP(),
    "Cosine": Cosine(),
    "VE": VE(),
    "EDM": EDM(),
    "Flow": Flow(),
    "Trig": Trig(),
    "Shifted": Shifted(Flow(), 3.0),
    "Tabulated": Tabulated.linear(),
}


class GaussianData(Denoiser):
    """E[x_0 | x_t] for independent elements N(mean, variance), and a count of its calls."""

    def __init__(self, schedule, mean=0.3, variance=0.25, event_shape=(1,)):
        super().__init__()
        self.process, self.event_shape = Gaussian(schedule), event_shape
        self.mean, self.variance, self.calls = mean, variance, 0

    def forward(self, xt, t, cond=None):
        self.calls += 1
        alpha, sigma = (expand(v, xt) for v in self.process.schedule.alpha_sigma(t))
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return TensorPosterior(self.mean + gain * (xt - alpha * self.mean))


class MixtureData(Denoiser):
    """E[x_0 | x_t] for one element drawn from a mixture of Gaussians."""

    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    means = torch.tensor([-0.8, 0.1, 0.9], dtype=torch.float64)
    variances = torch.tensor([0.09, 0.04, 0.16], dtype=torch.float64)
    event_shape = (1,)

    def __init__(self, schedule):
        super().__init__()
        self.process = Gaussian(schedule)

    def forward(self, xt, t, cond=None):
        alpha, sigma = self.process.schedule.alpha_sigma(t)
        spread = alpha**2 * self.variances + sigma**2
        gap = xt - alpha * self.means
        share = (self.weights.log() - spread.log() / 2 - gap**2 / (2 * spread)).softmax(-1)
        mean = (share * (self.means + alpha * self.variances / spread * gap)).sum(-1, keepdim=True)
        return TensorPosterior(mean)


def flow_reference(denoiser, x, t, s, steps=500):
    """x_s on the probability-flow ODE: RK4 for x / alpha in log(sigma / alpha), an independent route; sigma(s) > 0."""
    schedule = denoiser.process.schedule
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (tuple(map(float, schedule.alpha_sigma(u))) for u in (t, s))
    z, u = x / alpha_t, math.log(sigma_t / alpha_t)
    h = (math.log(sigma_s / alpha_s) - u) / steps

    def slope(z, u):
        time = schedule.time(-2 * u)
        alpha, _ = schedule.alpha_sigma(time)
        return z - denoiser(alpha * z, time).mean

    for n in range(steps):
        v = u + n * h
        a = slope(z, v)
        b = slope(z + h / 2 * a, v + h / 2)
        c = slope(z + h / 2 * b, v + h / 2)
        d = slope(z + h * c, v + h)
        z = z + h / 6 * (a + 2 * b + 2 * c + d)
    return alpha_s * z


def fitted_order(counts, errors):
    """The slope of -log error on log n."""
    return -np.polyfit(np.log(counts), np.log(np.asarray(errors, dtype=float)), 1)[0]


def interior(schedule, n):
    """n + 1 times, uniform in log(sigma / alpha), between two finite noise levels."""
    return schedule.time(-2 * torch.linspace(2.5, -2.5, n + 1, dtype=torch.float64))
