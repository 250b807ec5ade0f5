"""A sampler that runs without us: a network as one file, and a plan as JSON that says what to do with it.

The network's file is a pure function p = net(x, noise, label) of float32 arrays: x (B, *event), noise (B,) and, for a
network with classes, label (B,) int64, where `classes` stands for none. Everything else is numbers. Row n of the plan
builds the state y_n from x_1 and what came before (see `backdrift.sample.plan`), and the belief about it is

    D_n = skip[n] y_n + out[n] net(scale[n] y_n, noise[n], label),

with four numbers per row in the place of schedules, targets and preconditioning. Guidance is inside the network's
file: as skip is the same for both passes, guiding D by a weight is guiding p by it.

`docs/export.md` has the NumPy that runs the two files.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from backdrift.denoiser import Denoiser, Network
from backdrift.errors import UserError
from backdrift.files import atomic_path, write_text
from backdrift.interop.extras import first_line, need
from backdrift.interop.foreign import Angle, Convention, Foreign
from backdrift.sample.default import default_grid, default_solver
from backdrift.sample.grids import Grid
from backdrift.sample.plan import Plan
from backdrift.sample.solver import Sampler, Solver

Call = Callable[..., Tensor]


class Format(ABC):
    """A kind of file for a network; subclasses are frozen dataclasses without fields."""

    suffix: str
    needs: tuple[str, ...] = ()
    """The packages without which it cannot be written and read."""

    @abstractmethod
    def write(self, program: torch.export.ExportedProgram, inputs: tuple[Tensor, ...], path: Path) -> None:
        """Write the network. Raises `UserError` where the format cannot express a layer."""

    @abstractmethod
    def read(self, path: Path) -> Call:
        """The network as a function of tensors, run by what a user of the file would run."""


@dataclass(frozen=True)
class PT2(Format):
    """torch's own: `torch.export.load(path).module()` gives the network back."""

    suffix = ".pt2"

    def write(self, program, inputs, path):
        with atomic_path(path) as temporary:
            torch.export.save(program, temporary)

    def read(self, path):
        return torch.export.load(path).module()


@dataclass(frozen=True)
class ONNX(Format):
    """ONNX, for ONNX Runtime and others. Needs the extra "onnx"."""

    suffix = ".onnx"
    needs = ("onnx", "onnxscript", "onnxruntime")

    def write(self, program, inputs, path):
        size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
        if size > 2e9:
            raise UserError(f"One ONNX file holds at most 2 GB, and this network has {size / 1e9:.1f}; export a .pt2.")
        try:
            made = torch.onnx.export(program, inputs, dynamo=True, verbose=False)
        except Exception as error:
            raise UserError(f"ONNX cannot express this network: {first_line(error)}.") from error
        with atomic_path(path) as temporary:
            made.save(temporary)

    def read(self, path):
        session = need("onnxruntime", "onnx").InferenceSession(path)
        names = [value.name for value in session.get_inputs()]
        return lambda *inputs: torch.from_numpy(
            session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})[0]
        )


class Program(nn.Module):
    """net(x, noise, label) of plain tensors; guided by `guidance` towards the label where that is not 1."""

    def __init__(self, network: Network | Foreign, guidance: float = 1.0):
        super().__init__()
        self.net, self.guidance = network.net, guidance
        self.classes, self.channels = classes_of(network), network.event_shape[0]

    def predict(self, x: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        cond = {} if label is None else {"label": label}
        # a learned variance, in further channels, is of no use to a plan
        return self.net(x, noise, cond)[:, : self.channels]

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        if self.guidance == 1:
            return self.predict(x, noise, label)
        without = self.predict(x, noise, torch.full_like(label, self.classes))
        return torch.lerp(without, self.predict(x, noise, label), self.guidance)

    def inputs(self, shape: tuple[int, ...], count: int, seed: int = 0) -> tuple[Tensor, ...]:
        """A batch of what it takes."""
        made = torch.Generator().manual_seed(seed)
        x, noise = torch.randn(count, *shape, generator=made), torch.rand(count, generator=made)
        return (x, noise, torch.arange(count) % self.classes) if self.classes else (x, noise)


@dataclass(frozen=True)
class Files:
    """network, plan: the two files. gap: the norm of the difference of the file's answers from ours, over theirs."""

    network: Path
    plan: Path
    gap: float


@torch.no_grad()
def export(denoiser: Denoiser, plan: Plan, folder: Path, format: Format, *, guidance: float = 1.0) -> Files:
    """Write the network and the plan, run the network's file once, and compare.

    denoiser: a `Network`, or a foreign one. plan: for its schedule. guidance: towards the label that a user of the
    files gives; the plan must be for the same weight, or for none in particular.

    Raises `UserError` for a denoiser that is no network, conditions that are no labels, a plan for something else, a
    missing extra, and layers that the format cannot express.
    """
    network = checked(denoiser, plan, guidance)
    for package in format.needs:
        need(package, "onnx")
    folder = Path(folder)
    program = copy.deepcopy(Program(network, guidance)).cpu().float().eval()
    paths = folder / f"network{format.suffix}", folder / "plan.json"
    example = program.inputs(network.event_shape, 2)
    # both are talkative
    heard = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = traced(program, example)
            format.write(graph, example, paths[0])
            fresh = program.inputs(network.event_shape, 5, seed=1)
            expected, found = program(*fresh), format.read(paths[0])(*fresh)
    finally:
        logging.getLogger("torch.onnx").setLevel(heard)
    write_plan(paths[1], network, plan, paths[0].name, guidance)
    return Files(*paths, float((found - expected).norm() / expected.norm().clamp_min(1e-30)))


def compiled(denoiser: Denoiser, steps: int, solver: Sampler | None = None, grid: Grid | None = None) -> Plan:
    """The plan that `sample` would run. Raises `UserError` for a sampler that is no table of numbers."""
    schedule = getattr(denoiser.process, "schedule", None)
    solver, grid = solver or default_solver(denoiser), grid or default_grid(denoiser)
    if not isinstance(solver, Solver):
        raise UserError(f"{type(solver).__name__} is no table of numbers, so it cannot be exported; see bd.solvers.")
    start = float(grid.times(schedule, steps)[0])
    solver, intervals = solver.budget(steps, schedule, start)
    return solver.plan(schedule, grid.times(schedule, intervals))


def traced(program: Program, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The program as a graph for any batch. Raises `UserError` where a layer cannot be traced."""
    # AUTO rather than a named size: some of diffusers' layers take another, equal way from 64 samples on
    any_batch = tuple({0: torch.export.Dim.AUTO} for _ in example)
    try:
        return torch.export.export(program, example, dynamic_shapes=any_batch, strict=True)
    except Exception as error:
        raise UserError(f"{type(program.net).__name__} cannot be exported: {first_line(error)}.") from error


def checked(denoiser: Denoiser, plan: Plan, guidance: float) -> Network | Foreign:
    """The denoiser, if it and its plan can be written."""
    if not isinstance(denoiser, (Network, Foreign)):
        raise UserError(f"Only a network can be exported, not {type(denoiser).__name__}; give guidance as a number.")
    if getattr(denoiser, "self_conditioning", False):
        raise UserError("A self-conditioned network cannot be exported: its answer depends on an estimate of its own.")
    if getattr(denoiser.net, "config", {}).get("tokens") or getattr(denoiser.net, "takes", ("label",)) != ("label",):
        raise UserError("A network that attends to condition tokens cannot be exported: the file takes labels only.")
    if denoiser.process.project is not None:
        raise UserError("A process with a projection cannot be exported: the plan's noise would lack it.")
    if plan.schedule != denoiser.process.schedule:
        raise UserError(
            f"This plan was made for {plan.schedule}, but the denoiser runs on {denoiser.process.schedule}."
        )
    if plan.guidance not in (None, guidance):
        raise UserError(f"This plan was made for guidance {plan.guidance}, but {guidance} was asked for.")
    if guidance != 1 and not (classes_of(denoiser) and getattr(denoiser.net, "optional", True)):
        raise UserError(f"Guidance {guidance:g} needs a network that knows labels and no label.")
    return denoiser


def classes_of(network: Network | Foreign) -> int:
    """The number of labels that a network takes, 0 for none."""
    net = network.net
    return int(getattr(net, "classes", 0) or getattr(net, "config", {}).get("classes", 0))


def write_plan(path: Path, network: Network | Foreign, plan: Plan, file: str, guidance: float) -> None:
    """The plan's own JSON, and under "network" what each evaluation needs (see the module)."""
    convention = network.convention if isinstance(network, Foreign) else _ours(network)
    schedule, times = plan.schedule, plan.times[:-1]
    skip, out = convention.target.skip_out(schedule, times)
    alpha, sigma = schedule.alpha_sigma(times)
    # at sigma = 0 the state is alpha x_0, whatever the network says
    skip, out = torch.where(sigma == 0, 1 / alpha, skip), torch.where(sigma == 0, 0.0, out)
    plan.save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["network"] = {
        "file": file,
        "shape": list(network.event_shape),
        "classes": classes_of(network),
        "guidance": guidance,
        "start_std": float(schedule.alpha_sigma(plan.start)[1]),
        "scale": convention.clock.scale(schedule, times).tolist(),
        "noise": convention.clock.told(schedule, times).tolist(),
        "skip": skip.tolist(),
        "out": out.tolist(),
    }
    write_text(path, json.dumps(document) + "\n")


def _ours(network: Network) -> Convention:
    return Convention(network.process.schedule, network.target, Angle(network.sigma_data))
