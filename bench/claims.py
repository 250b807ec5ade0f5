"""The speed claims of the field on a trained run: Fréchet distance against evaluations.

    python bench/claims.py RUN [--n 500] [--seeds 3] [--most 1000]

DDIM at 50 evaluations against DDPM at 1,000 (Song et al. 2021), DPM-Solver++ at 10 against DDIM at 100 (Lu et al.
2022), and this library's default; of these the rows of at most `--most` evaluations. The same labels and start noises
throughout, no guidance. The distance is to the whole real set under 24 principal components of the pixels (PCA fitted
on the training part); its floor is that of as many real pictures. Prints JSON.
"""

import argparse
import json
import time

import torch

import backdrift as bd
from backdrift.evaluate import PixelPCA, frechet
from backdrift.evaluate.features import extract
from backdrift.sample.default import data_scale


def rows(scale: float) -> list[tuple[str, object, object, int]]:
    """(name, solver, grid, evaluations); None is the default."""
    s, g = bd.solvers, bd.grids
    table = [("DDPM", s.DDPM(), g.Trailing(), n) for n in (10, 50, 100, 1000)]
    table += [("DDIM", s.DDIM(), g.Trailing(), n) for n in (5, 10, 20, 50, 100)]
    table += [("DPM-Solver++ 2M, uniform log-SNR", s.DPMpp(2), g.LogSNR(), n) for n in (5, 10, 20)]
    table += [("DPM-Solver++ 2M, DataScaled", s.DPMpp(2), g.DataScaled(scale), n) for n in (5, 10, 20)]
    return table + [("default", None, None, n) for n in (5, 8, 10, 20)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=1000)
    options = parser.parse_args()

    model = bd.load(options.run)
    from backdrift.run import Run

    pictures = bd.data.load(Run(options.run).config()["data"]["source"])
    train, _ = pictures.split()
    features = PixelPCA.fit(train.tensor())
    everything = pictures.tensor()
    real = extract(features, everything)

    def draw(seed: int, count: int) -> torch.Tensor:
        return torch.randint(len(pictures), (count,), generator=torch.Generator().manual_seed(seed))

    floor = []
    for seed in range(20):
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        floor.append(float(frechet(real[order[: options.n]], real[order[options.n :]])))
    print(json.dumps({"floor": sum(floor) / len(floor)}), flush=True)
    out = []
    for name, solver, grid, steps in rows(data_scale(model.denoiser)):
        if steps > options.most:
            continue
        values, began = [], time.perf_counter()
        for seed in range(options.seeds if steps < 1000 else 1):
            label = None if pictures.labels is None else pictures.labels[draw(seed, options.n)]
            x = model.sample(options.n, label=label, steps=steps, solver=solver, grid=grid, seed=seed)
            values.append(float(frechet(extract(features, x.clamp(-1, 1)), real)))
        seconds = (time.perf_counter() - began) / len(values) / options.n
        mean = sum(values) / len(values)
        row = {"sampler": name, "evaluations": steps, "frechet": round(mean, 4), "seeds": len(values)}
        out.append({**row, "range": [round(min(values), 4), round(max(values), 4)], "ms_per_picture": 1000 * seconds})
        print(json.dumps(out[-1]), flush=True)
    print(json.dumps({"run": options.run, "n": options.n, "rows": out}))


if __name__ == "__main__":
    main()
