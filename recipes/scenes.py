"""Text to picture: drawn scenes with captions, 24x24, and how many captions of unseen combinations come out right.

    python recipes/scenes.py

U-Net of 2.1 million parameters and a text transformer of .4 million, trained together on captions of up to ten words.
Where things stand is decided at high noise, so training times lie there. The measured run (docs/measured.md) spread
them evenly over noise angles first and changed to high noise late; this single phase has not been run to its end.
"""

from dataclasses import replace

import recipe

import backdrift as bd
from backdrift.evaluate.composition import composition
from backdrift.files import write_json
from backdrift.objective.times import LogNormalSigma
from backdrift.train.ema import Snapshots
from backdrift.train.networks import UNetChoice
from backdrift.train.options import for_pictures
from backdrift.train.rate import Constant
from backdrift.train.texts import OwnText


def main():
    parser = recipe.parser(__doc__, "runs/scenes", data=False)
    parser.add_argument("--guidance", type=float, default=2.0, help="when captions are counted (default %(default)s)")
    words = parser.parse_args()
    pictures = bd.data.scenes(2_000 if words.small else 60_000)
    options = replace(
        for_pictures(pictures),
        steps=15_000,
        batch=32,
        lr=2e-3,
        rate=Constant(warmup=0.01),
        times=LogNormalSigma(mean=0.0, std=1.5),
        net=UNetChoice(width=32, multipliers=(1, 2, 4), blocks=1, attention=(2,)),
        snapshots=Snapshots(count=0),
    )

    def count(model: bd.Model) -> None:
        found = composition(
            model, n=max(1, words.samples // 10), guidance=words.guidance, solver=bd.solvers.DDIM(eta=1.0)
        )
        write_json(words.run / "composition.json", found.to_dict())
        print("\n".join(found.lines()))

    recipe.run(words, pictures, options.with_text(OwnText.of(pictures)), count)


if __name__ == "__main__":
    recipe.start(main)
