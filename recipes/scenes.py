"""Text to picture: drawn scenes with captions, 24x24, and how many captions of unseen combinations come out right.

    python recipes/scenes.py

U-Net of 2.6 million parameters and a text transformer of .5 million, trained together; captions of at most ten words.
"""

from dataclasses import replace

import recipe

import backdrift as bd
from backdrift.evaluate.composition import composition
from backdrift.files import write_json
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
        steps=5_000,
        batch=32,
        lr=2e-3,
        rate=Constant(warmup=0.02),
        net=UNetChoice(width=32, multipliers=(1, 2, 4), blocks=1, attention=(1, 2)),
        snapshots=Snapshots(count=0),
    )

    def count(model: bd.Model) -> None:
        found = composition(model, n=max(1, words.samples // 10), guidance=words.guidance, steps=words.evaluations)
        write_json(words.run / "composition.json", found.to_dict())
        print("\n".join(found.lines()))

    recipe.run(words, pictures, options.with_text(OwnText.of(pictures)), count)


if __name__ == "__main__":
    recipe.start(main)
