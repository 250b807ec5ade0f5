"""CT slices at 64x64, grey, with the part of the body as label. Nothing that this makes is clinical.

    python recipes/ct64.py ct-64.zip

The data: a folder or .zip with a folder per part of the body (MedNIST's AbdomenCT, ChestCT, HeadCT). Neighbouring
slices are near-duplicates and there are no patient ids, so runs of 20 consecutive files stay on one side of the split
with the held-out pictures; a patient may still be on both. U-Net, 20,000 steps of 64 pictures. Not yet run to the end.
"""

import recipe

import backdrift as bd
from backdrift.train.options import for_pictures


def main():
    words = recipe.parser(__doc__, "runs/ct64").parse_args()
    pictures = bd.data.pictures(words.data, 64, channels=1, block=20)
    recipe.run(words, pictures, for_pictures(pictures))


if __name__ == "__main__":
    recipe.start(main)
