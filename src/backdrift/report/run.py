"""The page of a run: how it was trained, what it makes, how good that is, and the command that repeats it."""

from __future__ import annotations

from pathlib import Path

import torch

from backdrift.data import Pictures, grid_png
from backdrift.files import write_text
from backdrift.model import Model
from backdrift.report import page
from backdrift.report.chart import Axis, Curve, chart
from backdrift.report.facts import command, evaluation, facts, last
from backdrift.run import Run
from backdrift.train.metrics import ANGLES, BINS

SHOWN = 64  # samples in a grid
SHOWN_TEXTS = 16  # of which each has a sample
PATH_STEPS = 10


def write_report(run: Run, model: Model, pictures: Pictures) -> Path:
    """Write `report.html` into the run; returns its path."""
    found = evaluation(run)
    parts = [
        *_verdict(found),
        page.facts(facts(run)),
        *_samples(model, pictures),
        *_path(model, pictures),
        *_evaluation(found, model, pictures),
        *curves(run.metrics(), loss_words(run)),
        page.heading("The command that repeats this run"),
        page.code(command(run)),
    ]
    path = run.folder / "report.html"
    write_text(path, page.Page(f"backdrift: {run.folder.name}", parts).html())
    return path


def _verdict(found: dict | None) -> list[str]:
    if not found or not found.get("memorisation"):
        return []
    check = found["memorisation"]
    if check["ratio"] is None:
        return []
    words = (
        f"the median distance of samples to their nearest training picture is {check['ratio']:.3f} "
        f"[{check['low']:.3f}, {check['high']:.3f}] of that of held-out pictures"
    )
    if check["ratio"] < 0.9:
        return [page.text(f"MEMORISED: {words}.", "alarm")]
    return [page.text(f"Not memorised: {words}.", "lead")]


def _samples(model: Model, pictures: Pictures) -> list[str]:
    train, held_out = pictures.split()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(train), generator=generator)[:SHOWN].tolist()
    parts, weights = [page.heading("Samples")], (1.0,) if model.unguided else (1.0, 2.0)
    figures = [page.picture(grid_png(train.tensor(chosen)), f"{len(chosen)} real pictures")]
    if model.text is not None and held_out.texts is not None:
        texts = held_out.texts[:SHOWN_TEXTS]
        for weight in weights:
            made = model.sample(len(texts), text=texts, guidance=weight, steps=10)
            figures.append(page.picture(grid_png(made, columns=4), f"texts below, guidance {weight:g}, 10 evaluations"))
        listed = page.text("Held-out texts, row by row: " + "; ".join(texts) + ".", "note")
        return [*parts, page.row(figures), listed]
    if model.classes:
        shown = range(min(len(model.classes), 10))
        label = [k for k in shown for _ in range(8)]
        for weight in weights:
            made = model.sample(len(label), label=label, guidance=weight, steps=10)
            figures.append(
                page.picture(grid_png(made, columns=8), f"a label per row, guidance {weight:g}, 10 evaluations")
            )
    else:
        made = model.sample(SHOWN, steps=10)
        figures.append(page.picture(grid_png(made), f"{SHOWN} samples, seed 0, 10 evaluations"))
    return [*parts, page.row(figures)]


def _path(model: Model, pictures: Pictures) -> list[str]:
    """One sample on its way: the noisy state above, what the network makes of it below."""
    states, means = [], []

    def keep(step) -> None:
        alpha, sigma = (float(v) for v in model.denoiser.process.schedule.alpha_sigma(step.t))
        # the state in units of its own spread, so that pure noise and picture are visible on one scale
        spread = (sigma**2 + (alpha * model.denoiser.sigma_data) ** 2) ** 0.5
        states.append(step.state / spread * model.denoiser.sigma_data)
        means.append(step.mean)

    label = 0 if model.classes else None
    text = None if model.text is None or pictures.texts is None else pictures.texts[0]
    last = model.sample(1, label=label, text=text, steps=PATH_STEPS, on_step=keep)
    strip = torch.cat([*states, last, *means, last])
    caption = f"above: the state at each of {PATH_STEPS} steps; below: the picture the network expects from it"
    return [page.heading("From noise to picture"), page.picture(grid_png(strip, columns=PATH_STEPS + 1), caption)]


def _evaluation(found: dict | None, model: Model, pictures: Pictures) -> list[str]:
    if not found:
        return []
    header = ("figure", "value", "95 % interval", "floor", "n", "real", "better")
    rows = [
        (
            row["name"],
            _number(row["value"]),
            f"{_number(row['low'])} to {_number(row['high'])}",
            _number(row["floor"]),
            str(row["n"]),
            str(row["reference"]),
            row["better"],
        )
        for row in found["rows"]
    ]
    guided = "" if found["guidance"] is None else f", label agreement also with guidance {found['guidance']:g}"
    made = f"{found['n']} samples at {found['steps']} evaluations, seed {found['seed']}, without guidance{guided}."
    parts = [
        page.heading("Evaluation"),
        page.table(header, rows),
        page.text(f"{made} Floor: {found['floor']}; a figure at its floor cannot be told from real pictures.", "note"),
        *(page.text(f"{row['name']}: {row['note']}.", "note") for row in found["rows"] if row["note"]),
    ]
    check = found.get("memorisation")
    if check and check["pairs"]:
        train, _ = pictures.split()
        numbers = [i for i, _, _ in check["pairs"]]
        labels = [found["plain_labels"][i] for i in numbers] if found["plain_labels"] else None
        texts = [found["plain_texts"][i] for i in numbers] if found.get("plain_texts") else None
        samples = model.sample(index=numbers, label=labels, text=texts, steps=found["steps"], seed=found["seed"])
        real = train.tensor([j for _, j, _ in check["pairs"]])
        strip = torch.cat([samples.cpu().clamp(-1, 1), real])
        caption = "above: the samples nearest to a training picture, nearest first; below: that picture"
        parts += [
            page.heading("Nearest training pictures"),
            page.picture(grid_png(strip, columns=len(numbers)), caption),
        ]
    return parts


def loss_words(run: Run) -> str:
    """What the loss of a run is."""
    objective = run.options().objective
    if objective.ends_path or objective.told:
        return "no measure of progress here, because its target moves with the network: see the samples' distance"
    return "the squared error of what the network predicts"


def curves(records: list[dict], loss_is: str) -> list[str]:
    """The charts of a training from its metrics; loss_is: what its loss is, in words."""

    def curve(name: str, words: str, dashed: bool = False) -> Curve:
        chosen = [record for record in records if record.get(name) is not None]
        return Curve(words, [r["step"] for r in chosen], [r[name] for r in chosen], dashed)

    def by_noise(name: str) -> list[Curve]:
        chosen = [record for record in records if record.get(name) is not None]
        return [
            Curve(
                f"{90 * k / BINS:.0f} to {90 * (k + 1) / BINS:.0f}°",
                [r["step"] for r in chosen],
                [r[name][k] for r in chosen],
            )
            for k in range(BINS)
        ]

    step, loss = Axis("step"), Axis("loss", log=True)
    charts = [
        chart(
            "Loss",
            [curve("loss", "training"), curve("validation_loss", "held out", True)],
            step,
            loss,
        ),
        chart("Loss by noise angle", _by_angle(records), Axis("noise angle (degrees)"), loss),
        chart("Training loss at each noise angle", by_noise("loss_by_noise"), step, loss),
        chart("Held-out loss at each noise angle", by_noise("validation_by_noise"), step, loss),
        chart("Samples' distance to the data", [curve("watched_fd", "averaged")], step, Axis("FD", log=True)),
        chart("Learning rate", [curve("lr", "rate")], step, Axis("rate")),
        chart("Speed", [curve("pictures_per_second", "pictures/s")], step, Axis("pictures per second")),
    ]
    note = (
        "Noise angle: atan2(noise, signal), 0° is a clean picture and 90° pure noise. The loss is "
        f"{loss_is}; the held-out curve is that of the averaged weights, always with the same noise."
    )
    return [page.heading("Training"), page.row([c for c in charts if c]), page.text(note, "note")]


def _by_angle(records: list[dict]) -> list[Curve]:
    """The loss against the noise angle: held out, at the first, the middle and the last time that it was measured."""
    held = [record for record in records if record.get("validation_by_noise") is not None]
    shown = {record["step"]: record for record in (held[:1] + held[len(held) // 2 :][:1] + held[-1:])}
    curves = [Curve(f"held out, {step}", ANGLES, record["validation_by_noise"]) for step, record in shown.items()]
    if trained := last(records, "loss_by_noise"):
        curves.append(Curve("training, last", ANGLES, trained, dashed=True))
    return curves


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
