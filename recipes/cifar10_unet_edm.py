"""CIFAR-10, 32x32, with labels: a U-Net under the law of EDM (Karras et al. 2022, arXiv:2206.00364, Table 1).

    python recipes/cifar10_unet_edm.py cifar10-train.zip

The data: a folder or .zip with a folder per class. U-Net of 40 million parameters, log(sigma) normal with mean -1.2 and
standard deviation 1.2, EDM's preconditioning, mirrored pictures, dropout 0.13; 100,000 steps of 512 pictures. Cost: 12
GFLOP per picture forward, so about 1.9e18 operations, which is for one large GPU. Not yet run to the end.
"""

import recipe

import backdrift as bd
from backdrift.objective.times import LogNormalSigma
from backdrift.train.networks import UNetChoice


def options(pictures: bd.data.Pictures) -> bd.TrainOptions:
    std = round(pictures.split()[0].std, 4)
    return bd.TrainOptions(
        steps=100_000,
        batch=512,
        lr=5e-4,
        flip=True,
        net=UNetChoice(width=128, multipliers=(1, 2, 2, 2), blocks=3, attention=(1,), head_width=64, dropout=0.13),
        schedule=bd.schedule.EDM(),
        target=bd.target.EDM_F(std),
        times=LogNormalSigma(-1.2, 1.2),
        checkpoint_every=2000,
    )


def main():
    words = recipe.parser(__doc__, "runs/cifar10-unet-edm").parse_args()
    pictures = bd.data.pictures(words.data, 32)
    recipe.run(words, pictures, options(pictures))


if __name__ == "__main__":
    recipe.start(main)
