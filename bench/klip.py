"""Finding what a prior has not seen: KLIP beside six other scores, for whole measurements and for pixels.

    python bench/klip.py RUN --operator ct|blur|missing [--unusual FOLDER ...] [--lesions] [--pictures 60] [--null 100]

RUN was trained without labels, or is asked without. Usual are its held-out pictures: the first ones make the null, the
next are judged. Unusual are the pictures of each FOLDER, resized; and with --lesions, the judged pictures with a soft
disc added at a random place inside the body, by contrast (in units of [-1, 1]) and radius (in pixels). Areas under the
ROC curve of the two-sided p-value's reverse, and of the bare score ("high is unusual"), with 95 % intervals over
pictures; for lesions also over the pixels, of KLIP's raw map and of its map against the null. Prints JSON.
"""

import argparse
import json
import math
import time

import torch

import backdrift as bd
from backdrift.run import Run
from backdrift.trust.screen import screen


def operator(word: str, shape: tuple[int, ...]) -> bd.inverse.Measurement:
    """CT from 20 angles, a blur, or half of the pixels missing; noise as strong as a fiftieth of the range."""
    if word == "ct":
        return bd.inverse.Radon(torch.arange(20) * math.pi / 20, shape, noise=0.02 * shape[-1])
    if word == "blur":
        return bd.inverse.Blur(bd.inverse.gaussian_kernel(1.5), shape, 0.04)
    keep = bd.Noise.of(7, 1).uniform(torch.empty(1, *shape))[0] < 0.5
    return bd.inverse.Inpaint(keep, 0.04)


def lesion(x: torch.Tensor, contrast: float, radius: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, C, H, W) with a disc of soft edge each, and the masks."""
    side, place = x.shape[-1], torch.arange(x.shape[-1]).double()
    out, masks = x.clone(), torch.zeros_like(x)
    for k, one in enumerate(x):
        inside = (one[0] > -0.6).double()
        rim = math.ceil(radius) + 2
        inside[:rim], inside[-rim:], inside[:, :rim], inside[:, -rim:] = 0, 0, 0, 0
        spots = inside.nonzero()
        if not len(spots):
            spots = torch.tensor([[side // 2, side // 2]])
        u = bd.Noise(seed, torch.tensor([k])).uniform(torch.empty(1, dtype=torch.float64))
        row, column = spots[int(u * len(spots))].tolist()
        distance = ((place[:, None] - row) ** 2 + (place[None] - column) ** 2).sqrt()
        out[k] += contrast * torch.sigmoid((radius - distance) / 0.4).to(x)
        masks[k] = (distance <= radius).to(x)
    return out.clamp(-1, 1), masks


def rate(found) -> list[float]:
    return [round(v, 3) for v in (found.value, found.low, found.high)]


def areas(result, usual: slice, unusual: slice) -> dict:
    """By score: the area with the two-sided p-value, and with the bare score."""
    out = {}
    for name, score in result.scores.items():
        p = -result.p(name).log()
        bare = score.scores
        out[name] = {
            "two-sided": rate(bd.trust.auroc(p[usual], p[unusual])),
            "high": rate(bd.trust.auroc(bare[usual], bare[unusual])),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--operator", choices=("ct", "blur", "missing"), default="ct")
    parser.add_argument("--unusual", nargs="*", default=[])
    parser.add_argument("--lesions", action="store_true")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--null", type=int, default=100)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--levels", type=int, default=16)
    options = parser.parse_args()
    model = bd.load(options.run)
    train, held = bd.data.load(Run(options.run).config()["data"]["source"]).split()
    shape, count = model.event_shape, options.pictures
    # spread over the held-out part: neighbours in a block are much alike
    places = torch.linspace(0, len(held) - 1, options.null + count).long()
    places = places[bd.Noise.of(0, len(places)).uniform(torch.empty(len(places), dtype=torch.float64)).argsort()]
    x = held.tensor(places)
    null, judged = x[: options.null], x[options.null :]
    sets, masks = {"usual": judged}, {}
    for folder in options.unusual:
        other = bd.data.pictures(folder, shape[-1], channels=shape[0])
        sets[folder.rstrip("/").rpartition("/")[2]] = other.tensor(torch.linspace(0, len(other) - 1, count).long())
    if options.lesions:
        for contrast, radius in ((0.2, 2.5), (0.4, 2.5), (0.8, 2.5), (0.4, 1.5), (0.4, 4.0), (-0.4, 2.5)):
            name = f"lesion {contrast:+g} radius {radius:g}"
            sets[name], masks[name] = lesion(judged, contrast, radius, 3)
    measurement = operator(options.operator, shape)
    y = torch.cat([measurement.draw(v, bd.Noise.of(11, len(v))) for v in sets.values()])
    # well below the noise of every operator above, where the measurement has nothing more to say
    finest = float(model.denoiser.process.schedule.time(-2 * math.log(0.01)))
    clock = time.time()
    result = screen(
        bd.inverse.PiGDM(prior_std=train.std),
        model.denoiser,
        measurement,
        y,
        measurement.draw(null, bd.Noise.of(12, len(null))),
        bd.trust.Reference(train.tensor(torch.linspace(0, len(train) - 1, min(len(train), 3000)).long())),
        options.draws,
        steps=options.steps,
        estimator=bd.trust.Renoised(options.levels, finest),
        batch=128,
    )
    seconds = time.time() - clock
    out = {"run": str(options.run), "operator": options.operator, "null": options.null, "pictures": count}
    out |= {"draws": options.draws, "steps": options.steps, "levels": options.levels, "seconds": round(seconds)}
    p = result.p("klip")[:count]
    out["usual pictures with p <= .05"] = round(float((p <= 0.05).double().mean()), 3)
    out["median KLIP of usual pictures"] = round(float(result.klip.total[:count].median()), 2)
    out["median standard error"] = round(float(result.klip.stderr[:count].median()), 2)
    for k, name in enumerate(list(sets)[1:], start=1):
        here = slice(k * count, (k + 1) * count)
        out[name] = areas(result, slice(0, count), here)
        if name in masks:
            maps = {f"{s} map": v.map[here] for s, v in result.scores.items() if v.map is not None}
            maps["klip map against the null"] = result.unusual()[here]
            maps["signed klip map, its size"] = result.klip.signed[here].abs()
            out[name]["pixels"] = {s: rate(bd.trust.pixel_auroc(v, masks[name])) for s, v in maps.items()}
    print(json.dumps(out, indent=1))
    if masks:
        name = next(iter(list(masks)[2:]))
        here = list(sets).index(name) * count
        rows = [sets[name][:8], result.klip.mean[here : here + 8].float(), masks[name][:8] * 2 - 1]
        for maps in (result.klip.map, result.unusual()):
            part = maps[here : here + 8].float()
            rows.append(part / part.flatten(1).amax(1).view(-1, 1, 1, 1) * 2 - 1)
        bd.save_grid(torch.cat(rows), f"klip-{options.operator}.png")


if __name__ == "__main__":
    main()
