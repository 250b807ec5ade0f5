"""Emoji at 32x32 or 64x64, without labels: few pictures, so dropout, and a look at the memorisation figure at the end.

    python recipes/emoji.py noto-emoji-72.zip [--size 64]

The data: a folder or .zip of square pictures with transparent corners, put on white (Noto's 2,303, 72x72). U-Net,
20,000 steps of 64 pictures; no mirroring, because some emoji are letters. Not yet run to the end.
"""

from dataclasses import replace

import recipe

import backdrift as bd
from backdrift.train.options import for_pictures


def main():
    parser = recipe.parser(__doc__, "runs/emoji")
    parser.add_argument("--size", type=int, choices=(32, 64), default=32, help="side in pixels (default 32)")
    words = parser.parse_args()
    pictures = bd.data.pictures(words.data, words.size, channels=3)
    options = for_pictures(pictures)
    recipe.run(words, pictures, replace(options, net=replace(options.net, dropout=0.1)))


if __name__ == "__main__":
    recipe.start(main)
