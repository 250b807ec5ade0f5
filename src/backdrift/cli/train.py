"""`backdrift train`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from backdrift import processes
from backdrift.cli.parse import notice, parse, say
from backdrift.cli.tasks import Task
from backdrift.cli.tasks.adapter import Adapter
from backdrift.cli.tasks.classifier import Classifier
from backdrift.cli.tasks.control import Control
from backdrift.cli.tasks.encoder import Encoder
from backdrift.cli.tasks.fewstep import FewStep
from backdrift.cli.tasks.generate import Generate
from backdrift.cli.tasks.inpainting import Inpainting
from backdrift.cli.tasks.prior import Prior
from backdrift.cli.tasks.represented import Represented
from backdrift.errors import UserError


@dataclass(frozen=True)
class UNetOptions:
    """The U-Net; what is left out follows the size of the pictures."""

    width: int | None = None
    """Channels at full resolution, a multiple of 16."""
    multipliers: tuple[int, ...] | None = None
    """Of the width, one per level; each level halves the picture."""
    blocks: int | None = None
    """Residual blocks per level."""
    attention: tuple[int, ...] | None = None
    """Levels with self-attention, 0 being full resolution."""
    residual_resampling: bool | None = None
    """Change the resolution inside residual blocks of their own."""
    dropout: float | None = None
    """Inside residual blocks."""


@dataclass(frozen=True)
class MPUNetOptions:
    """The magnitude-preserving U-Net (--network mp-unet); what is left out follows the size of the pictures."""

    width: int | None = None
    """Channels at full resolution, an even number."""
    multipliers: tuple[int, ...] | None = None
    """Of the width, one per level; each level halves the picture."""
    blocks: int | None = None
    """Residual blocks per level."""
    attention: tuple[int, ...] | None = None
    """Levels with self-attention, 0 being full resolution."""
    dropout: float | None = None
    """Inside residual blocks."""


@dataclass(frozen=True)
class DiTOptions:
    """The transformer (--network dit); what is left out follows the size of the pictures."""

    patch: int | None = None
    """Side of a patch in pixels; each patch is a token."""
    width: int | None = None
    """Of a token, a multiple of 64."""
    depth: int | None = None
    """Number of blocks."""
    registers: int | None = None
    """Further tokens that belong to no place."""
    rotary: bool | None = None
    """Turn queries and keys by their positions."""
    dropout: float | None = None
    """Inside the blocks."""


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are read."""

    size: int | None = None
    """Side of the square to which pictures are resized; left out, they must already have one size."""
    fit: str | None = None
    """What to do with other proportions or mixed sizes: crop, pad or stretch."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Red, green, blue behind transparent pixels and around padded ones."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; left out, grey if every picture is."""
    validation: float = 0.1
    """The share that is held out and never trained on."""
    block: int = 1
    """So many consecutive pictures share a side of the split (neighbouring slices, frames)."""
    skip_broken: bool = False
    """Leave broken pictures out instead of stopping."""
    cache: Path | None = None
    """A folder to keep the decoded pictures in, for sets that are slow to read or larger than memory."""


@dataclass(frozen=True)
class LossOptions:
    """What a step minimises; by default the mean square error of what the network predicts."""

    weight: str | None = None
    """How much each noise level counts: simple, bound, truncated-snr, min-snr, soft-min-snr, p2, edm."""
    uncertainty: bool = False
    """Divide the loss at each noise level by its expectation there, which is learned."""
    importance: bool = False
    """Draw times more often where the loss is large, and count those losses less."""
    learned_variance: bool = False
    """Learn the variances of the reverse steps too, by the hybrid loss."""
    variance_steps: int | None = None
    """Steps of the model whose variances are learned (1000)."""
    self_conditioning: bool = False
    """Show the network its own first estimate, for half of the pictures."""
    optimal_transport: int | None = None
    """Pair noise and pictures by least distance in groups of so many, a divisor of the batch (for flow matching)."""


@dataclass(frozen=True)
class Train:
    """Train on a folder of pictures, a .zip, a .npy/.npz file, scikit-learn's digits, or drawn scenes with captions.

    The same command continues a run that was stopped or killed, bit for bit.
    """

    data: str = "digits"
    """A folder (with or without class subfolders), a .zip, a .npy/.npz, "digits" or "scenes"."""
    task: Literal[
        "generate", "classifier", "control", "adapter", "inpainting", "encoder", "represented", "prior", "fewstep"
    ] = "generate"
    """What is trained: a model that samples (generate), a classifier of noisy pictures, which guides one, a side
    network through which a model follows a picture's edges or regions (control), a few numbers that specialise a model
    (adapter), one that fills pictures in (inpainting), an encoder, which says in a short vector what a picture shows, a
    model that is told such vectors (represented), one that draws them (prior), or one that samples in one or two
    evaluations (fewstep)."""
    run: Path | None = None
    """The folder of the run; by default runs/ and the name of the data."""
    steps: int | None = None
    """Optimiser steps."""
    length: int | None = None
    """Pictures to train on in all, in place of --steps."""
    batch: int | None = None
    """Pictures per step, of all processes together; the defaults keep their length in pictures."""
    parts: int | None = None
    """Pieces in which a batch passes through the network, to save memory."""
    lr: float | None = None
    """Highest learning rate."""
    seed: int | None = None
    from_: Annotated[Path | None, arg(name="from")] = None
    """Another run, whose averaged weights are the start."""
    device: str | None = None
    """cpu, cuda, ...; by default the accelerator if there is one."""
    shard: bool = False
    """Under torchrun, split weights, averages and moments over the processes (FSDP2)."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """Arithmetic of the network; auto times a product and takes bf16 where it pays."""
    network: Literal["unet", "mp-unet", "dit"] | None = None
    """U-Net (the default), magnitude-preserving U-Net, or transformer."""
    net: str | None = None
    """A network of your own, my_file.py:Net, made as Net(shape=(C, H, W), classes=n)."""
    target: str | None = None
    """What the network predicts: x0, eps, v, velocity, score, edm_f."""
    schedule: str | None = None
    """Noise schedule: vp, cosine, ve, edm, flow, trig, or a .json that backdrift score --clock learned has kept."""
    times: str | None = None
    """How training times are spread: angle (evenly over noise levels), uniform, logitnormal, lognormalsigma."""
    text: bool = False
    """Learn to follow the pictures' texts (their captions), with a small text encoder that is trained along."""
    text_encoder: Path | None = None
    """With --text, a folder of a CLIP or T5 text encoder that transformers wrote, in place of our own; it stays as it
    is."""
    label_dropout: float | None = None
    """Share of the pictures whose label and text are hidden in training, for guidance."""
    flip: bool | None = None
    """Mirror pictures left to right at random."""
    checkpoint_every: int | None = None
    sample_every: int | None = None
    snapshots: int | None = None
    """Averages kept for backdrift average, 4 bytes per weight each (8); 0 keeps none."""
    track: tuple[str, ...] = ()
    """Show the figures in tensorboard or wandb too."""
    loss: OmitArgPrefixes[LossOptions] = field(default_factory=LossOptions)
    unet: UNetOptions = field(default_factory=UNetOptions)
    mp_unet: MPUNetOptions = field(default_factory=MPUNetOptions)
    dit: DiTOptions = field(default_factory=DiTOptions)
    pictures: PictureOptions = field(default_factory=PictureOptions)
    generate: OmitArgPrefixes[Generate] = field(default_factory=Generate)
    fewstep: FewStep = field(default_factory=FewStep)
    classifier: Classifier = field(default_factory=Classifier)
    control: Control = field(default_factory=Control)
    adapter: Adapter = field(default_factory=Adapter)
    inpainting: Inpainting = field(default_factory=Inpainting)
    encoder: Encoder = field(default_factory=Encoder)
    represented: Represented = field(default_factory=Represented)
    prior: Prior = field(default_factory=Prior)


def main(arguments: list[str]) -> None:
    run(parse(Train, "train", arguments), ["backdrift", "train", *arguments])


def read(options: Train):
    """The pictures that the options name."""
    from backdrift.cli.choices import fit
    from backdrift.data import digits, pictures, scenes
    from backdrift.progress import counting_bar

    how = options.pictures
    made = {"digits": digits, "scenes": scenes}.get(options.data)
    if made is not None:
        for name, value in vars(how).items():
            if name != "validation" and value != getattr(PictureOptions, name):
                raise UserError(
                    f"The {options.data} are what they are and take no --pictures.{name.replace('_', '-')}."
                )
        return made(validation=how.validation)
    with counting_bar("reading pictures") as bar:
        return pictures(
            options.data,
            how.size,
            channels=how.channels,
            fit=fit(how.fit, how.background),
            background=how.background,
            skip_broken=how.skip_broken,
            validation=how.validation,
            block=how.block,
            cache=how.cache,
            on_progress=bar,
        )


def choices(options: Train, pictures, before=None):
    """The library's `TrainOptions`: defaults by the pictures, overridden by what was typed.

    before: those of the run that is to be continued.
    """
    from backdrift.cli.choices import choose, schedule
    from backdrift.interop.text import load
    from backdrift.target import EDM_F
    from backdrift.train.options import COUNTED, for_pictures
    from backdrift.train.texts import OwnText

    names = ("steps", "batch", "parts", "lr", "seed", "precision", "label_dropout", "flip")
    names += ("checkpoint_every", "sample_every")
    typed = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    made = for_pictures(pictures)
    if options.batch is not None and options.batch > 0:
        made = made.at_batch(options.batch)
    if options.length is not None:
        if options.steps is not None:
            raise UserError("--steps and --length both say how long to train; give one of them.")
        typed["steps"] = -(-options.length // made.batch)
    if before is not None:  # counted otherwise by an older release: a run keeps its counts
        typed = {**{name: getattr(before, name) for name in COUNTED}, **typed}
    if options.schedule is not None:
        typed["schedule"] = schedule(options.schedule)
    if options.target is not None:
        target = choose("target", options.target)
        typed["target"] = made.target if isinstance(target, EDM_F) else target
    if options.snapshots is not None:
        typed["snapshots"] = replace(made.snapshots, count=options.snapshots)
    typed |= loss(options, made)
    typed["net"] = network(options, made.net, max(pictures.shape[1:], default=1))
    typed.setdefault("lr", made.lr * typed["net"].pace)
    made = replace(made, **typed)
    if options.text_encoder is not None and not options.text:
        raise UserError("--text-encoder reads the pictures' texts; add --text.")
    if not options.text:
        return made
    return made.with_text(OwnText.of(pictures) if options.text_encoder is None else load(options.text_encoder))


def loss(options: Train, made) -> dict:
    """What the options say of times, objective and pairing, in the words of `TrainOptions`; `made` has the defaults."""
    from backdrift.cli.choices import choose
    from backdrift.objective import EDM, ByLoss, Denoising, Hybrid, OptimalTransport, Simple, Uncertainty

    said = options.loss
    if said.variance_steps is not None and not said.learned_variance:
        raise UserError("--variance-steps is of learned variances; add --learned-variance.")
    times = made.times
    if options.times is not None:
        chosen = choose("times", options.times)
        times = made.times if type(chosen) is type(made.times) else chosen
    weight = Simple() if said.weight is None else choose("weight", said.weight)
    if isinstance(weight, EDM):
        weight = EDM(made.target.sigma_data)
    steps = {} if said.variance_steps is None else {"steps": said.variance_steps}
    typed = {
        "times": ByLoss(times) if said.importance else times,
        "objective": Denoising(
            weight,
            Uncertainty() if said.uncertainty else None,
            Hybrid(**steps) if said.learned_variance else None,
            0.5 if said.self_conditioning else 0.0,
        ),
    }
    if said.optimal_transport is not None:
        typed["pairing"] = OptimalTransport(said.optimal_transport)
    return typed


def network(options: Train, unet, side: int):
    """The network that the options name, from the U-Net and the side of these pictures and overridden by what was
    typed."""
    from backdrift.train.networks import DiTChoice, FileNet, MPUNetChoice

    shapes = {"unet": options.unet, "mp-unet": options.mp_unet, "dit": options.dit}
    typed = {name: {k: v for k, v in vars(own).items() if v is not None} for name, own in shapes.items()}
    if options.net is not None:
        if options.network is not None or any(typed.values()):
            raise UserError("--network and its options shape the library's own networks; they cannot go with --net.")
        return FileNet.of(options.net)
    chosen = options.network or "unet"
    for name, own in typed.items():
        if own and name != chosen:
            option = f"--{name}.{next(iter(own)).replace('_', '-')}"
            raise UserError(f"{option} shapes the {name}, and the network is the {chosen}; add --network {name}.")
    made = {"unet": unet, "mp-unet": MPUNetChoice.like(unet), "dit": DiTChoice.for_side(side)}
    return replace(made[chosen], **typed[chosen])


def chosen_task(options: Train) -> Task:
    """The task of this command. Raises `UserError` where an option of another one was typed."""
    tasks = {name: value for name, value in vars(options).items() if isinstance(value, Task)}
    for name, task in tasks.items():
        typed = [key for key, value in vars(task).items() if value != getattr(type(task)(), key)]
        if typed and name != options.task:
            raise UserError(f"--{name}.{typed[0].replace('_', '-')} is of another task; add --task {name}.")
    return tasks[options.task]


def run(options: Train, command: list[str]) -> Path:
    """Train, draw on the way, write the report; returns the run folder."""
    from backdrift.cli.choices import tracker
    from backdrift.progress import training_bar
    from backdrift.run import Run
    from backdrift.train.loop import train

    task = chosen_task(options)
    folder = Run(options.run or Path("runs") / Path(options.data).stem)
    trackers = [tracker(word, folder) for word in options.track] if processes.rank() == 0 else []
    pictures = task.pictures(options, read(options))
    made = choices(options, pictures, folder.options() if folder.begun() else None)
    made = task.choices(options, pictures, made)

    def record(values: dict) -> None:
        for each in trackers:
            each(values)

    with ExitStack() as stack:
        for each in trackers:
            stack.callback(each.close)
        bar = stack.enter_context(training_bar())
        trained = train(
            pictures,
            made,
            run=folder,
            start_from=options.from_,
            device=options.device,
            command=command,
            on_progress=bar,
            on_notice=notice,
            on_sample=task.drawing(pictures, folder),
            on_record=record,
            shard=options.shard,
        )
    if processes.rank() == 0:
        for line in task.finish(trained, pictures, folder):
            say(line)
    return folder.folder
