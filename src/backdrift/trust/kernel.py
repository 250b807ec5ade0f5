"""The chain behind a posterior sampler, where it has one: x_next = keep x + gain D(x) + std xi, step by step.

A guided sampler on a solver that is a table with one state per row and fresh noise is such a chain, and its kernels are
Gaussians that differ from the prior's, and from the exact posterior's, in D alone. So divergences between chains are
sums over steps without any error of time discretisation,

    KL(chain || exact chain) = sum_n gain_n^2 / (2 std_n^2) E |D_n - D*_n|^2,

and bound the divergence of their ends. For samplers that are no such chain (deterministic ones, projections,
optimisers, someone else's) the quantity does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backdrift.inverse.sampler import Exact, Steered
from backdrift.posterior import flat
from backdrift.process import Gaussian
from backdrift.sample.plan import Plan
from backdrift.sample.solver import Solver


@dataclass(frozen=True)
class Kernel:
    """Row n goes from times[n] to times[n + 1]; every list has as many entries as there are evaluations."""

    times: tuple[float, ...]
    keep: tuple[float, ...]
    gain: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, sampler: object, process: Gaussian, steps: int) -> Kernel | None:
        """The chain of a sampler of ours, or None where it is not one."""
        # one with a call of its own does more than run its solver
        plain = type(sampler).__call__ in (Steered.__call__, Exact.__call__)
        if not plain or not isinstance(sampler.solver, Solver):
            return None
        return cls.of_plan(plan_of(sampler, process, steps))

    @classmethod
    def of_plan(cls, plan: Plan) -> Kernel | None:
        """The chain of a plan whose rows each use the last state, the last mean and one noise, or None."""
        keep, gain, std = [], [], []
        N = plan.evaluations
        if plan.states[0, 0] != 1 or plan.noise[0].any():
            return None
        for n in range(1, N + 1):
            states, means, noise = plan.states[n].clone(), plan.means[n].clone(), plan.noise[n]
            keep.append(float(states[n]))
            gain.append(float(means[n - 1]))
            states[n] = means[n - 1] = 0
            used = noise.nonzero().flatten()
            if states.any() or means.any() or len(used) > 1:
                return None
            std.append(float(noise[used[0]]) if len(used) else 0.0)
        # the last step, to the data, may be without noise
        if not all(std[:-1]):
            return None
        return cls(tuple(plan.times.tolist()[:N]), tuple(keep), tuple(gain), tuple(std))

    def divergence(self, n: int, a: Tensor, b: Tensor) -> Tensor:
        """KL of step n's kernels with the means a and b of x_0, (B,) float64; 0 for a step without noise."""
        if self.std[n] == 0:
            return torch.zeros(len(a), dtype=torch.float64)
        return (self.gain[n] / self.std[n]) ** 2 / 2 * flat(a - b).double().square().sum(1)


def plan_of(sampler: Steered | Exact, process: Gaussian, steps: int) -> Plan:
    """The plan that a guided sampler runs."""
    start = float(sampler.grid.times(process.schedule, steps)[0])
    solver, intervals = sampler.solver.budget(steps, process.schedule, start)
    return solver.plan(process.schedule, sampler.grid.times(process.schedule, intervals))
