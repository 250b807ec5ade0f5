"""A trained model as its user sees it: `bd.load(folder).sample(16, label=3, guidance=2.0, steps=10, seed=0)`.

A `Model` knows its classes, its scale and its run folder, so nothing has to be typed again; below it is a plain
`Denoiser`, which every sampler, guidance and audit takes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from backdrift.config import from_config
from backdrift.data import Pictures
from backdrift.data.derived import derive
from backdrift.denoiser import Denoiser
from backdrift.device import pick
from backdrift.edit.control import conditions, pictures_of
from backdrift.errors import UserError
from backdrift.guide import Annealed, ClassifierFree, NoisyClassifier
from backdrift.interop import diffusers, hub
from backdrift.noise import Noise
from backdrift.progress import training_bar
from backdrift.represent import Encoder
from backdrift.run import Run, load_network, read_model
from backdrift.sample import Grid, Plan, Sampler, Step, sample
from backdrift.train.loop import train as train_network
from backdrift.train.networks import NetChoice
from backdrift.train.options import TrainOptions
from backdrift.train.texts import TextEncoder

BATCH = 256


class Model:
    """denoiser: the network. classes: the names of its labels, () without. folder: its run, or None.

    decode: from what the denoiser makes to pictures, where these differ (a latent model's decoder), or None.
    text: what reads texts, for a model that was trained with them, or None. unguided: why it cannot be guided away from
    its own belief without a condition, in a sentence; "" where it can.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classes: Sequence[str] = (),
        folder: Path | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        text: TextEncoder | None = None,
        unguided: str = "",
    ):
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.classes = tuple(classes)
        self.folder = None if folder is None else Path(folder)
        self.decode = decode
        self.text = text
        self.unguided = unguided

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one sample, (C, H, W)."""
        return self.denoiser.event_shape

    def around(self, denoiser: Denoiser, classes: Sequence[str] | None = None) -> Model:
        """The same model with a steered denoiser in its place: Model.around(AutoGuidance(model.denoiser, weak, 2.0)).

        classes: of the labels that it then follows, where they are others.
        """
        known = self.classes if classes is None else classes
        return Model(denoiser, known, None, self.decode, self.text, self.unguided)

    def labels(self, label: int | str | Sequence[int | str] | Tensor | None, count: int) -> Tensor | None:
        """Numbers or names of classes as LongTensor (count,); one label is repeated.

        Raises `UserError` for a model without labels, an unknown class, or a wrong count.
        """
        if label is None:
            return None
        if not self.classes:
            raise UserError("This model was trained without labels, so it cannot be asked for one.")
        wanted = label.tolist() if isinstance(label, Tensor) else label
        many = list(wanted) if isinstance(wanted, (list, tuple, range)) else [wanted] * count
        numbers = [self._number(one) for one in many]
        if len(numbers) != count:
            raise UserError(f"There are {len(numbers)} labels for {count} samples; give one label, or one per sample.")
        return torch.tensor(numbers, dtype=torch.int64)

    def texts(self, text: str | Sequence[str] | None, count: int) -> Tensor | None:
        """cond["text"] of one text, which is repeated, or of `count` texts.

        Raises `UserError` for a model without text, a wrong count, and an empty or too long text.
        """
        if text is None:
            return None
        if self.text is None:
            raise UserError("This model was trained without text, so it cannot be asked for one.")
        many = [text] * count if isinstance(text, str) else list(text)
        if len(many) != count:
            raise UserError(f"There are {len(many)} texts for {count} samples; give one text, or one per sample.")
        return self.text.encode(many)

    def _number(self, label: int | str) -> int:
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        try:
            number = int(label)
        except ValueError:
            number = -1
        if not 0 <= number < len(self.classes):
            known = ", ".join(self.classes[:12]) + (", ..." if len(self.classes) > 12 else "")
            raise UserError(
                f"There is no label {label!r}; the labels are 0 to {len(self.classes) - 1}, by name {known}."
            )
        return number

    def guided(self, guidance: float, cond: Mapping | None) -> Denoiser:
        """The denoiser under classifier-free guidance of this weight; 1 is the model itself.

        Raises `UserError` where there is no condition to exaggerate, or no belief without one.
        """
        if guidance == 1:
            return self.denoiser
        if self.unguided:
            raise UserError(self.unguided)
        if not cond:
            raise UserError(f"Guidance {guidance:g} needs a condition to follow, such as label=3 or a text.")
        pictures = pictures_of(self.denoiser)
        # what else is asked for is exaggerated, and a picture that the model follows only where there is nothing else
        words = tuple(name for name in cond if name not in pictures)
        return ClassifierFree(self.denoiser, guidance, words or tuple(cond))

    def tuned_plan(self, steps: int, guidance: float = 1.0) -> Plan | None:
        """The run's plan tuned for this budget and guidance weight, if it has one."""
        path = None if self.folder is None else Run(self.folder).tuned_plan(steps, guidance)
        return Plan.load(path) if path is not None and path.exists() else None

    def sample(
        self,
        n: int | None = None,
        *,
        label: int | str | Sequence[int | str] | Tensor | None = None,
        text: str | Sequence[str] | None = None,
        guidance: float = 1.0,
        steps: int = 20,
        solver: Sampler | None = None,
        grid: Grid | None = None,
        plan: Plan | None = None,
        cond: Mapping[str, Tensor] | None = None,
        control: Tensor | Mapping[str, Tensor] | None = None,
        index: Sequence[int] | None = None,
        seed: int = 0,
        batch: int = BATCH,
        on_step: Callable[[Step], None] | None = None,
    ) -> Tensor:
        """n pictures, (n, C, H, W) in [-1, 1] up to overshoot.

        label: a class or one per sample, by number or name; None is unconditional. text: what to show, or one text per
        sample. guidance: 1 follows label and text, more exaggerates them. index: which samples of the seed, such as
        [7]; sample i is the same picture in any batch. steps: calls of the denoiser. Where solver, grid and plan are
        left out, a plan tuned for these steps and this guidance is used if the run has one. batch: samples per call,
        for memory only. cond: further conditions, (n, ...) each.
        control: the picture that a model trained to follow one follows, (K, H, W) or one per sample, or several by
        name (`hint` makes them of an ordinary picture).
        """
        if n is None and index is None:
            raise UserError("Say how many samples: sample(16), or sample(index=[7]).")
        index = list(range(n)) if index is None else list(index)
        if n is not None and n != len(index):
            raise UserError(f"index names {len(index)} samples, but {n} were asked for.")
        if not index:
            raise UserError("Sampling needs at least one sample.")
        if min(index) < 0:
            raise UserError(f"Samples are numbered from 0, so there is no sample {min(index)}.")
        if batch < 1:
            raise UserError(f"A batch has at least one sample, not {batch}.")
        cond = dict(cond or {})
        labels = self.labels(label, len(index))
        if labels is not None:
            cond["label"] = labels
        texts = self.texts(text, len(index))
        if texts is not None:
            cond["text"] = texts
        if control is not None:
            cond |= conditions(self.denoiser, control, len(index))
        if "guidance" in getattr(self.denoiser, "told", ()):
            # a student that was distilled over a range of weights is told the one that is wanted
            cond["guidance"], guidance = torch.full((len(index),), float(guidance)), 1.0
        denoiser = self.guided(guidance, cond)
        if any(isinstance(part, Annealed) for part in denoiser.modules()):
            cond["sample"] = torch.tensor(index)
        if plan is solver is grid is None:
            plan = self.tuned_plan(steps, guidance)
        device = next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))
        parts = []
        for low in range(0, len(index), batch):
            part = {name: value[low : low + batch].to(device) for name, value in cond.items()}
            made = sample(
                denoiser,
                index=index[low : low + batch],
                solver=solver,
                steps=steps,
                grid=grid,
                plan=plan,
                cond=part or None,
                seed=seed,
                on_step=on_step,
            )
            parts.append(made if self.decode is None else self.decode(made))
        return torch.cat(parts)

    def hint(self, pictures: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """What a run was trained to follow, taken from `pictures` (B, C, H, W), as `control` for `sample`.

        Raises `UserError` for a model that follows none.
        """
        derived = Run(self.folder).options().derived if self.folder is not None and pictures_of(self.denoiser) else ()
        if not derived:
            raise UserError("This model was not trained to follow a picture; see backdrift train --task control.")
        return derive(derived, pictures, Noise.of(seed, len(pictures)))

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write what sampling needs of this model's run into a folder to publish, with a model card; returns it.

        Raises `UserError` for a model without a run folder, or a folder that holds something else.
        """
        if self.folder is None or not Run(self.folder).begun() or diffusers.is_folder(self.folder):
            raise UserError("Only a model with a run folder can be saved; load or train it with one.")
        hub.save(Run(self.folder), Path(folder))
        return Path(folder)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, device: str | torch.device | None = None) -> Model:
        """The model of a folder that `save_pretrained` wrote, or of a hub id, owner/name (extra "hub").

        Raises `UserError` where there is none.
        """
        return load(hub.local(name), device)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Publish as the hub's `name`, owner/name, under the user's login (extra "hub"); returns the address.

        Raises `UserError` as `save_pretrained` does, and where the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            return hub.push(self.save_pretrained(Path(folder) / "model"), name, private)


def load(
    folder: str | os.PathLike, device: str | torch.device | None = None, net: NetChoice | nn.Module | None = None
) -> Model:
    """The model of a run folder (or of its model.safetensors alone), with its averaged weights, ready to sample.

    A folder that diffusers wrote is read as well (`backdrift.interop.diffusers`, which has further choices).

    device: the accelerator if there is one, by default. net: for a run of someone's own network, that network again.

    Raises `UserError` where the folder holds no model, a damaged one, one that needs `net`, or what does not sample.
    """
    path = Path(folder)
    if diffusers.is_folder(path):
        return _foreign(path, pick(device))
    network = load_network(path, pick(device), net)
    if not isinstance(network, Denoiser):
        raise UserError(f"{path} holds a {type(network).__name__}, which does not sample; give a run that does.")
    if path.is_file():
        return of_run(network, read_model(path)[1])
    return of_run(network, Run(path).config(), path)


def load_classifier(folder: str | os.PathLike, device: str | torch.device | None = None) -> NoisyClassifier:
    """The classifier of a run that `backdrift train --task classifier` made, for `guide.Classifier`.

    Raises `UserError` as `load` does, and for a run that trained something else.
    """
    network = load_network(folder, pick(device))
    if not isinstance(network, NoisyClassifier):
        raise UserError(f"{folder} holds no classifier; backdrift train --task classifier makes one.")
    return network


def load_encoder(folder: str | os.PathLike, device: str | torch.device | None = None) -> Encoder:
    """The encoder of a run that `backdrift train --task encoder` made: pictures (B, C, H, W) to vectors (B, size).

    Raises `UserError` as `load` does, and for a run that trained something else.
    """
    network = load_network(folder, pick(device))
    if not isinstance(network, Encoder):
        raise UserError(f"{folder} holds no encoder; backdrift train --task encoder makes one.")
    return network


def of_run(network: Denoiser, config: dict, folder: Path | None = None) -> Model:
    """The model around the `network` of a run, which `config` describes."""
    options, classes = from_config(config["options"]), config["data"]["classes"]
    return Model(network, classes, folder, text=options.text, unguided=unguided(options))


def unguided(options: TrainOptions) -> str:
    """Why a model that was trained so cannot be guided away from its belief without a condition; "" where it can."""
    if "guidance" in options.objective.told:
        return (
            "This student was distilled over a range of guidance and is told the one that is wanted: give the guidance "
            "alone, without other ways of steering."
        )
    weight = getattr(options.objective, "guidance", None)
    if weight is not None:
        return (
            f"This student was distilled at guidance {weight:g} and has it within, so no other can be asked for: leave "
            "guidance out, or distil once more with another."
        )
    if options.label_dropout == 0:
        return (
            "This run saw every condition in training (label dropout 0), so there is no belief without one to guide "
            "away from: train with --label-dropout 0.1, or guide by --weak or --classifier."
        )
    return ""


def _foreign(path: Path, device: torch.device) -> Model:
    """The model of a diffusers folder, with its decoder where it works on codes."""
    parts = diffusers.Parts.find(path)
    autoencoder = None if parts.autoencoder is None else diffusers.load_autoencoder(path).to(device)
    denoiser = diffusers.load(path).to(device)
    return Model(denoiser, parts.classes, path, None if autoencoder is None else autoencoder.decode)


def train(
    pictures: Pictures,
    options: TrainOptions | None = None,
    *,
    run: str | os.PathLike | None = None,
    start_from: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    net: nn.Module | None = None,
    shard: bool = False,
    progress: bool = True,
) -> Model | nn.Module:
    """Train on the training part of `pictures` and return the model.

    An objective that trains something else than a denoiser gives that: `Classification` a `guide.NoisyClassifier`.

    options: by default chosen by the size of the pictures. run: the folder to keep (and, called again, to continue);
    None keeps nothing. start_from: another run, whose weights are the start. net: a module of your own, called as
    net(x, noise, cond). shard: under torchrun, split the network over the processes. progress: draw a progress bar.

    In a script that torchrun starts, the processes train together and process 0 alone writes.

    Raises `UserError` for bad input, before training starts.
    """
    with training_bar() if progress else nullcontext() as on_progress:
        trained = train_network(
            pictures,
            options,
            run=run,
            start_from=start_from,
            device=device,
            net=net,
            shard=shard,
            on_progress=on_progress,
        )
    if not isinstance(trained.network, Denoiser):
        return trained.network
    return of_run(trained.network, trained.config, None if run is None else Path(run))
