"""CIFAR-10, 32x32, with labels: a transformer that learns the velocity of straight paths (flow matching).

    python recipes/cifar10_transformer_flow.py cifar10-train.zip

The data: a folder or .zip with a folder per class. Transformer of 33 million parameters on patches of 2 (Peebles & Xie
2022, arXiv:2212.09748, size S), times logit-normal (Esser et al. 2024, arXiv:2403.03206), mirrored pictures; 200,000
steps of 256 pictures. Cost: 11 GFLOP per picture forward, so about 1.7e18 operations, which is for one large GPU. Not
yet run to the end.
"""

import recipe

import backdrift as bd
from backdrift.objective.times import LogitNormal
from backdrift.train.networks import DiTChoice

OPTIONS = bd.TrainOptions(
    steps=200_000,
    batch=256,
    lr=5e-4,
    flip=True,
    net=DiTChoice(patch=2, width=384, depth=12),
    schedule=bd.schedule.Flow(),
    target=bd.target.VELOCITY(),
    times=LogitNormal(),
    checkpoint_every=2000,
)


def main():
    words = recipe.parser(__doc__, "runs/cifar10-transformer-flow").parse_args()
    recipe.run(words, bd.data.pictures(words.data, 32), OPTIONS)


if __name__ == "__main__":
    recipe.start(main)
