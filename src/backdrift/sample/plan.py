"""A sampler as a table of numbers, and the short engine that runs any such table.

With N evaluations, row n builds the state y_n, and the last row is the output:

    y_n = states[n, 0] x_1 + sum_{j<n} states[n, j + 1] y_j + sum_{j<n} means[n, j] D_j + sum_m noise[n, m] xi_m
    D_n = denoiser(y_n, times[n]).mean

A plan can be run, checked exactly (on Gaussian data every D_n is affine in y_n, so the whole run is), tuned by gradient
descent on its entries, saved as JSON and run elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from backdrift.config import from_config, to_config
from backdrift.denoiser import Denoiser
from backdrift.errors import UserError
from backdrift.files import write_text
from backdrift.noise import BrownianPath, Noise
from backdrift.process.gaussian import Gaussian
from backdrift.schedule import Schedule

FORMAT = 1


class Step(NamedTuple):
    """What `on_step` is shown after each evaluation: row n of `total`, its time, the state there and E[x_0 | state]."""

    n: int
    total: int
    t: float
    state: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Affine:
    """On Gaussian data a plan's output is gain x_1 + offset + sum_m noise[m] xi_m, each of the variance's shape."""

    gain: Tensor
    offset: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """A compiled sampler. All entries are finite float64 numbers; rows use only what earlier rows made.

    times: (N + 1,), the times of the N evaluations and of the output. states: (N + 1, N + 1). means: (N + 1, N).
    noise: (N + 1, M). noise_intervals: (M, 2), the stretch of the Brownian path behind each noise.
    toward: (N,), the times that each answer is asked for, of a flow map; None asks an ordinary denoiser.
    schedule, start, guidance: what it was compiled for; `run` refuses another schedule or guidance weight.

    Raises `UserError` for wrong shapes, non-finite entries, times outside [0, 1] or a table that is not causal.
    """

    times: Tensor
    states: Tensor
    means: Tensor
    noise: Tensor
    noise_intervals: Tensor
    schedule: Schedule
    start: float = 1.0
    guidance: float | None = None
    solver: str = field(default="", compare=False)
    toward: Tensor | None = None

    def __post_init__(self):
        count, draws = len(self.times) - 1, len(self.noise_intervals)
        shapes = {"states": (count + 1, count + 1), "means": (count + 1, count), "noise": (count + 1, draws)}
        for name, shape in shapes.items():
            table = getattr(self, name)
            if count < 1 or tuple(table.shape) != shape:
                raise UserError(
                    f"A plan of {count} evaluations needs {name} of shape {shape}, not {tuple(table.shape)}."
                )
            if not bool(table.isfinite().all()):
                row = int((~table.isfinite()).any(1).nonzero()[0])
                raise UserError(f"Row {row} of this plan's {name} is not finite: the solver cannot take this step.")
        if self.noise_intervals.shape[1:] != (2,):
            raise UserError(f"noise_intervals has shape (M, 2), not {tuple(self.noise_intervals.shape)}.")
        toward = [] if self.toward is None else self.toward.tolist()
        if self.toward is not None and len(toward) != count:
            raise UserError(f"A plan of {count} evaluations asks for as many times, not {len(toward)}.")
        for t in (*self.times.tolist(), *self.noise_intervals.flatten().tolist(), self.start, *toward):
            if not 0 <= t <= 1:
                raise UserError(f"The times of a plan lie in [0, 1], but one is {t}.")
        if bool(self.states.triu(1).any()) or bool(self.means.triu(0).any()):
            raise UserError("A plan is causal: a row may use only the states and means of earlier rows.")

    @property
    def evaluations(self) -> int:
        """N, the number of calls of the denoiser."""
        return len(self.times) - 1

    @cached_property
    def stochastic(self) -> bool:
        """Whether it draws any noise."""
        return bool(self.noise.any())

    # ------------------------------------------------------------------ running

    def run(
        self,
        denoiser: Denoiser,
        x1: Tensor,
        cond: Mapping | None = None,
        noise: Noise | Sequence[Tensor] | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Tensor:
        """The output for the start states x1 (B, *event), in x1's dtype.

        noise: a `Noise` for the batch, or the M standard normal tensors themselves; needed only if the plan draws any.
        """
        self.check(denoiser)
        draws = self._draws(noise, x1)
        if denoiser.process.project is not None:
            draws = map(denoiser.process.project, draws)
        slots: list[Tensor | None] = [None] * self._slots
        slots[0] = x1
        total, dtype = self.evaluations, x1.dtype
        for n, (t, base, scale, rest, new, dead) in enumerate(self._program):
            for slot in new:
                slots[slot] = next(draws)
            # one operation a term; only a tensor made here is written to
            y = slots[base] if scale == 1.0 and not rest else slots[base] * scale
            for slot, value in rest:
                y.add_(slots[slot], alpha=value)
            # before the denoiser is called, which needs the memory
            for slot in dead:
                slots[slot] = None
            if n == total:
                return y
            asked = cond if self.toward is None else {**(cond or {}), "toward": self.toward[n].expand(len(y))}
            mean = denoiser(y, t, asked).mean
            slots[1 + n] = y
            slots[1 + total + n] = mean = mean if mean.dtype == dtype else mean.to(dtype)
            if on_step is not None:
                on_step(Step(n, total, t, y, mean))
            del mean

    def check(self, denoiser: Denoiser) -> None:
        """Raises `UserError` unless this plan was compiled for the denoiser's schedule and guidance weight."""
        process = denoiser.process
        if not isinstance(process, Gaussian):
            raise UserError(
                f"A plan serves a Gaussian process, not {type(process).__name__}: "
                "use bd.solvers.Bridge(), which serves all."
            )
        if process.schedule != self.schedule:
            raise UserError(f"This plan was made for {self.schedule}, but the denoiser runs on {process.schedule}.")
        weight = getattr(denoiser, "guidance", None)
        if self.guidance is not None and weight != self.guidance:
            words = "none" if weight is None else f"{weight:g}"
            raise UserError(f"This plan was made for guidance {self.guidance:g}, but the denoiser has {words}.")

    def _draws(self, noise: Noise | Sequence[Tensor] | None, like: Tensor) -> Iterator[Tensor]:
        if not self.stochastic:
            return iter(())
        if noise is None:
            raise UserError("This plan is stochastic: give it a Noise, such as Noise.of(seed, batch).")
        count = len(self.noise_intervals)
        if not isinstance(noise, Noise):
            if len(noise) != count:
                raise UserError(f"This plan draws {count} noises, but {len(noise)} were given.")
            return (xi / scale for xi, scale in zip(noise, self._noise_scales, strict=True))
        if self._chained:
            return self._path.draw(noise, like)
        return (noise.at("draw", m).normal(like) for m in range(count))

    @cached_property
    def _chained(self) -> bool:
        """Whether the noise intervals follow each other, so that one Brownian path runs through them."""
        low, high = self.noise_intervals[:, 0], self.noise_intervals[:, 1]
        return bool((low > high).all()) and bool((low[1:] == high[:-1]).all())

    @cached_property
    def _path(self) -> BrownianPath:
        """The path on the noise angle, over the chained intervals."""
        ends = torch.cat([self.noise_intervals[:1, 0], self.noise_intervals[:, 1]])
        return BrownianPath(self.schedule.angle(ends).tolist())

    @cached_property
    def _noise_scales(self) -> list[float]:
        """What turns a draw into a standard normal."""
        if not self._chained:
            return [1.0] * len(self.noise_intervals)
        low, high = (self.schedule.angle(self.noise_intervals[:, i]) for i in (1, 0))
        lengths = (high - low).clamp_min(1e-30).sqrt().tolist()
        return [scale / length for scale, length in zip(self._path.scales, lengths, strict=True)]

    @property
    def _slots(self) -> int:
        return 1 + 2 * self.evaluations + len(self.noise_intervals)

    @cached_property
    def _program(self) -> list[_Row]:
        """Each row's non-zero terms over the slots [x_1, y_0.., D_0.., xi_0..], and the slots to drop after it."""
        count = self.evaluations
        scales = torch.tensor(self._noise_scales, dtype=torch.float64)
        table = torch.cat([self.states, self.means, self.noise * scales], 1).tolist()
        rows, drawn = [], 0
        # a state that no row uses is dropped in the row after its own
        last_use = {slot: n + 1 for n in range(count) for slot in (1 + n, 1 + count + n)}
        # a row without terms is 0 x_1
        sparse = [[(slot, value) for slot, value in enumerate(row) if value] or [(0, 0.0)] for row in table]
        last_use |= {slot: n for n, terms in enumerate(sparse) for slot, _ in terms}
        for n, terms in enumerate(sparse):
            wanted = max((slot - 2 * count for slot, _ in terms if slot > 2 * count), default=0)
            new = tuple(2 * count + 1 + m for m in range(drawn, max(drawn, wanted)))
            drawn = max(drawn, wanted)
            dead = tuple(slot for slot in (*new, *last_use) if last_use.get(slot, n) == n)
            rows.append(_Row(float(self.times[n]), *terms[0], tuple(terms[1:]), new, dead))
        return rows

    # ------------------------------------------------------------------ exact checks

    def affine(self, mean: float | Tensor, variance: float | Tensor) -> Affine:
        """The whole run on data N(mean, variance), element by element: exact, without sampling.

        There D_n = mean + k_n (y_n - alpha_n mean) with k = alpha variance / (alpha^2 variance + sigma^2).
        """
        mean, variance = (torch.as_tensor(v, dtype=torch.float64) for v in (mean, variance))
        mean, variance = torch.broadcast_tensors(mean, variance)
        alpha, sigma = self.schedule.alpha_sigma(self.times)
        count, draws = self.evaluations, len(self.noise_intervals)
        # everything so far as rows over the columns [x_1, the constant, the noises], for every element of the data
        columns, size = 2 + draws, mean.numel()
        ys = torch.zeros(count + 2, columns, size, dtype=torch.float64)  # x_1, y_0 .. y_N
        ds = torch.zeros(count, columns, size, dtype=torch.float64)
        ys[0, 0] = 1.0
        m, v = mean.reshape(-1), variance.reshape(-1)
        for n in range(count + 1):
            y = torch.tensordot(self.states[n, : n + 1], ys[: n + 1], 1) + torch.tensordot(self.means[n, :n], ds[:n], 1)
            y[2:] += self.noise[n, :, None]
            ys[n + 1] = y
            if n < count:
                k = torch.where(v > 0, alpha[n] * v / (alpha[n] ** 2 * v + sigma[n] ** 2), 0.0)
                ds[n] = k * y
                ds[n, 1] += (1 - k * alpha[n]) * m
        out = ys[-1].reshape(columns, *mean.shape)
        return Affine(out[0], out[1], out[2:])

    def law(
        self, mean: float | Tensor, variance: float | Tensor, start: tuple[float | Tensor, float | Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Exact mean and variance of the output on data N(mean, variance).

        start: mean and variance of x_1; by default the prior's, 0 and sigma(start)^2.
        """
        run = self.affine(mean, variance)
        if start is None:
            start = (0.0, float(self.schedule.alpha_sigma(self.start)[1]) ** 2)
        return run.gain * start[0] + run.offset, run.gain**2 * start[1] + run.noise.square().sum(0)

    # ------------------------------------------------------------------ keeping

    def with_guidance(self, weight: float) -> Plan:
        """The same table, bound to a guidance weight."""
        return replace(self, guidance=weight)

    def save(self, path: str | os.PathLike) -> None:
        """Write the plan as sparse JSON, atomically."""
        tables = {
            name: [
                [n, j, value]
                for n, row in enumerate(getattr(self, name).tolist())
                for j, value in enumerate(row)
                if value
            ]
            for name in ("states", "means", "noise")
        }
        document = {
            "format": FORMAT,
            "solver": self.solver,
            "evaluations": self.evaluations,
            "schedule": to_config(self.schedule),
            "start": self.start,
            "guidance": self.guidance,
            "times": self.times.tolist(),
            "noise_intervals": self.noise_intervals.tolist(),
            **({} if self.toward is None else {"toward": self.toward.tolist()}),
            **tables,
        }
        write_text(path, json.dumps(document) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Plan:
        """Read a plan that `save` wrote. Raises `UserError` for anything else."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a plan: {error}.") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise UserError(f"{path} is not a plan of format {FORMAT}.")
        try:
            schedule = from_config(document["schedule"])
            if not isinstance(schedule, Schedule):
                raise UserError(f"{path} is not a plan: it names no schedule.")
            count, draws = document["evaluations"], len(document["noise_intervals"])
            widths = {"states": count + 1, "means": count, "noise": draws}
            tables = {}
            for name, width in widths.items():
                table = torch.zeros(count + 1, width, dtype=torch.float64)
                for n, j, value in document[name]:
                    table[n, j] = value
                tables[name] = table
            return cls(
                torch.tensor(document["times"], dtype=torch.float64),
                tables["states"],
                tables["means"],
                tables["noise"],
                torch.tensor(document["noise_intervals"], dtype=torch.float64).reshape(draws, 2),
                schedule,
                float(document["start"]),
                document["guidance"],
                document["solver"],
                torch.tensor(document["toward"], dtype=torch.float64) if "toward" in document else None,
            )
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is not a complete plan: {error!r}.") from error


class _Row(NamedTuple):
    t: float
    base: int
    scale: float
    rest: tuple[tuple[int, float], ...]
    new: tuple[int, ...]
    dead: tuple[int, ...]
