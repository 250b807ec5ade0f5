"""Emoji at 32x32 or 64x64 from their names: few pictures, so dropout, and a look at the memorisation figure at the end.

    python recipes/emoji.py noto-emoji-72.zip [--size 64]
    backdrift sample runs/emoji --text "red heart" --guidance 3

The data: a folder or .zip of square pictures with transparent corners, put on white, with a metadata.jsonl that gives
each its `text` (Noto's 2,303, 72x72); without one, the same is trained without text. U-Net, 20,000 steps of 64
pictures; no mirroring, because some emoji are letters. Not yet run to the end.
"""

from dataclasses import replace

import recipe

import backdrift as bd
from backdrift.train.options import for_pictures
from backdrift.train.texts import OwnText


def main():
    parser = recipe.parser(__doc__, "runs/emoji")
    parser.add_argument("--size", type=int, choices=(32, 64), default=32, help="side in pixels (default 32)")
    words = parser.parse_args()
    pictures = bd.data.pictures(words.data, words.size, channels=3)
    options = for_pictures(pictures)
    options = replace(options, net=replace(options.net, dropout=0.1))
    if pictures.texts is not None:
        options = options.with_text(OwnText.of(pictures))
    recipe.run(words, pictures, options)


if __name__ == "__main__":
    recipe.start(main)
